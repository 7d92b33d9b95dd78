"""From a folder of outputs with sidecars to registered versions.

All I/O of ingestion is here and no parsing (`formats.sidecar`). A bad annotation costs only itself:
it becomes an alert, and every output is still recorded.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field, frozen

from modelhub_sdk import garbage
from modelhub_sdk.arguments import checked_key
from modelhub_sdk.blobs import disk, sources
from modelhub_sdk.blobs import progress as bars
from modelhub_sdk.datasets import commit_version
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain import names, rules
from modelhub_sdk.domain.entities import Alert, File, IngestReport, ModelVersion, Output
from modelhub_sdk.domain.uri import ModelURI, Number
from modelhub_sdk.domain.values import Frozen, normalise, to_json
from modelhub_sdk.errors import (
    Busy,
    Conflict,
    InvalidDocument,
    KeyReused,
    ModelHubError,
    NotFound,
    Offline,
    StoreUnavailable,
    nearest,
    shown,
)
from modelhub_sdk.formats import codec, sidecar
from modelhub_sdk.formats.sidecar import FileMetadata
from modelhub_sdk.index import data as data_index
from modelhub_sdk.index.queries import View
from modelhub_sdk.references import dataset_version_uri

if TYPE_CHECKING:
    from modelhub_sdk.registry import Registry

log = logging.getLogger("modelhub_sdk")

_INLINE_OUTPUTS = 500
_MAX_ALERTS = 200  # kept in the journal; the report has all
_MAX_ALERT_BYTES = 100_000


@define
class _Wanted:
    """One version that annotations ask for, gathered from all files that carry its URI."""

    uri: ModelURI
    paths: list[str] = field(factory=list)
    tags: dict[str, None] = field(factory=dict)
    notes: dict[str, None] = field(factory=dict)
    line: int | None = None


@frozen
class IngestSession:
    """What a run that is on tells of itself.

    Of a run that `failed` outputs are kept, and no versions are made. One that went on after it was
    interrupted ingests as another `attempt`. What is as it was `before` the run (path -> size, mtime
    in ns, inode) is not its output. `duration` is in seconds.
    """

    failed: bool = False
    duration: float | None = None
    attempt: int = 1
    before: Mapping[str, tuple[int, int, int]] = Frozen()


@frozen
class _Found:
    """What stands in the folder: the outputs, and what the sidecars say of them."""

    outputs: tuple[sources.Source, ...]
    metadata: Mapping[str, FileMetadata]
    sidecar_digests: tuple[tuple[str, str], ...]
    alerts: tuple[Alert, ...]


def ingest(
    reg: Registry,
    folder: str | os.PathLike[str],
    *,
    run: str | None,
    metrics: Mapping[str, Any] | None,
    params: Mapping[str, Any] | None,
    inputs: Iterable[str],
    idempotency_key: str | None,
    keep: str,
    progress: bool | None,
    session: IngestSession | None = None,
) -> IngestReport:
    """Read a folder of outputs and register what its sidecars ask for. See `Registry.ingest`.

    *session* tells more of the run where that is on in this process.
    """
    if keep not in ("annotated", "all"):
        raise InvalidDocument(f"keep is 'annotated' or 'all', not {shown(keep)}.")
    run = None if run is None else names.check_text(run, "run", 200)
    key = None if idempotency_key is None else checked_key(idempotency_key)
    if run is not None and not re.fullmatch(r"\S(.*\S)?", run):
        raise InvalidDocument("run is empty, or begins or ends with a blank.")
    common = reg._common(
        metrics=normalise(metrics, "metrics"), params=normalise(params, "params"), inputs=inputs
    )
    session = session or IngestSession()
    common["duration"] = session.duration
    reg._writable()
    found = _read(reg, folder, session.before)
    alerts = list(found.alerts)
    wanted = _gathered(found, alerts)
    again = f"#{session.attempt}" if session.attempt > 1 else ""
    ingest_key = f"run:{run}{again}" if run is not None else "key:" + key if key is not None else ""
    if ingest_key and (before := _before(reg, ingest_key)) is not None:
        return _repeated(reg, before, alerts)  # whatever lies there now: nothing is stored again
    with reg._core.view() as view:
        reg._core.check_frozen(view)
    stored = _stored(reg, found, wanted, keep, progress, alerts)
    ingest_key = ingest_key or "content:" + _content(found, stored, common)
    if (before := _before(reg, ingest_key)) is not None:
        return _repeated(reg, before, alerts)
    for one in wanted:
        one.paths[:] = [path for path in one.paths if path in stored]
    wanted = [one for one in wanted if one.paths]
    outputs = tuple(_output(file, found.metadata.get(file.path)) for file in stored.values())
    if session.failed:
        if wanted or any(entry.datasets for entry in found.metadata.values()):
            alerts.append(Alert("The run failed: its outputs are kept, and no versions are made of them."))
        made, data = [], []
    else:
        made = _registered(reg, wanted, stored, common, ingest_key, run, alerts)
        data = _datasets(reg, found, stored, ingest_key, run, alerts)
    own = {path for path in stored if keep == "all" or _is_kept(found.metadata.get(path))}
    named = {path for path in stored if path in own or _is_named(found.metadata.get(path))}
    datums = _datums(reg, found, {path: stored[path] for path in sorted(named)}, ingest_key, run)
    report = IngestReport(
        versions=tuple(made),
        dataset_versions=tuple(data),
        datums=tuple(datums),
        alerts=tuple(alerts),
        outputs=outputs,
    )
    _record(reg, ingest_key, run, report, own)
    for alert in alerts:
        log.warning("%s", alert)
    return report


# --- reading ------------------------------------------------------------------------------------------


def _read(
    reg: Registry, folder: str | os.PathLike[str], before: Mapping[str, tuple[int, int, int]] = Frozen()
) -> _Found:
    root = os.fsdecode(folder) if isinstance(folder, (str, os.PathLike)) else ""
    if "\0" in root or not os.path.isdir(root):
        raise NotFound(
            f"There is no folder of outputs {shown(root, 200)}.", hint="Pass the folder that the run wrote."
        )
    alerts: list[Alert] = []

    def refused(path: str, error: ModelHubError) -> None:
        if isinstance(error, StoreUnavailable):
            raise error  # the disk failed, not the output: the same call again may read it
        alerts.append(Alert(error.message, file=path))

    everything = sources.collect(root, inside=root, refused=refused, forbidden=reg._own())
    by_path = {source.path: source for source in everything}
    sidecars = sidecar.pairs(by_path)
    digests = []
    parsed = []
    jsonl = sidecar.Sidecars()
    for path, of in [*((path, of) for path, of in sidecars.items()), (sidecar.JSONL_NAME, None)]:
        source = by_path.get(path)
        if source is None:
            continue
        try:
            data = _bytes(source, sidecar.MAX_FILE + 1)
        except ModelHubError as error:
            refused(path, error)
            continue
        digests.append((path, hashlib.sha256(data).hexdigest()))
        if of is None:
            jsonl = sidecar.parse_jsonl(data, source=path)
        else:
            parsed.append(sidecar.parse_sidecar(data, file=of, source=path))
    together = sidecar.merge(jsonl, parsed)
    alerts += together.problems
    old = {path for path, state in before.items() if _state(os.path.join(root, path)) == state}
    outputs = tuple(s for s in everything if s.path not in sidecars and s.path != sidecar.JSONL_NAME)
    outputs = tuple(source for source in outputs if source.path not in old)
    there = {source.path for source in outputs}
    metadata = {}
    for entry in together.entries:
        if entry.file in there:
            metadata[entry.file] = entry
            continue
        if entry.file in old:
            continue  # of an earlier run, in a folder that is used again
        near = nearest(entry.file, there)
        did = f" Did it mean {', '.join(map(shown, near))}?" if near else ""
        what = (
            "is a folder: name each file" if os.path.isdir(os.path.join(root, entry.file)) else "is not there"
        )
        alerts.append(
            Alert(
                f"The output {shown(entry.file)} {what}.{did}",
                file=sidecar.JSONL_NAME if entry.line else entry.file + sidecar.SUFFIX,
                line=entry.line,
            )
        )
    alerts += _orphans(outputs)
    return _Found(outputs, metadata, tuple(sorted(digests)), tuple(alerts))


def _state(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def _bytes(source: sources.Source, limit: int) -> bytes:
    """Return what a sidecar holds, at most *limit* bytes; one that changes meanwhile is an error."""
    reader = source.open()
    parts: list[bytes] = []
    size = 0
    try:
        buffer = memoryview(bytearray(1 << 18))
        while size < limit and (count := reader.readinto(buffer)):
            parts.append(bytes(buffer[:count]))
            size += count
        if size < limit:
            reader.finish()
    finally:
        reader.close()
    return b"".join(parts)


def _orphans(outputs: Sequence[sources.Source]) -> list[Alert]:
    """Alert about sidecars whose output is missing: they carry annotations, so they were meant as such."""
    found = []
    for source in outputs:
        if not source.path.endswith(sidecar.SUFFIX) or (source.size or 0) > sidecar.MAX_LINE:
            continue
        try:
            data = _bytes(source, sidecar.MAX_LINE)
        except ModelHubError:
            continue
        if b'"valohai.' in data:
            missing = source.path.removesuffix(sidecar.SUFFIX)
            found.append(Alert(f"This describes {shown(missing)}, which is not there.", file=source.path))
    return found


# --- deciding -----------------------------------------------------------------------------------------


def _gathered(found: _Found, alerts: list[Alert]) -> list[_Wanted]:
    """Return the versions that are asked for: files with one URI together, numbered ones first."""
    by_uri: dict[str, _Wanted] = {}
    for path, entry in sorted(found.metadata.items()):
        for annotation in entry.models:
            wanted = by_uri.setdefault(str(annotation.uri), _Wanted(annotation.uri, line=entry.line))
            wanted.paths.append(path)
            wanted.tags.update(dict.fromkeys(annotation.tags))
            if annotation.note:
                wanted.notes[annotation.note] = None
    return sorted(by_uri.values(), key=lambda w: (w.uri.name, _number(w.uri) or 1 << 40))


def _number(uri: ModelURI) -> int | None:
    return uri.selector.number if isinstance(uri.selector, Number) else None


def _stored(
    reg: Registry,
    found: _Found,
    wanted: Sequence[_Wanted],
    keep: str,
    progress: bool | None,
    alerts: list[Alert],
) -> dict[str, File]:
    """Store what an annotation names (or everything), hash the rest; return all outputs by path."""
    named = {path for one in wanted for path in one.paths}
    named |= {path for path, entry in found.metadata.items() if _is_named(entry)}
    take = [s for s in found.outputs if keep == "all" or s.path in named]
    rest = [s for s in found.outputs if not (keep == "all" or s.path in named)]
    with bars.bar(sum(s.size or 0 for s in found.outputs), "ingesting outputs", show=progress) as step:
        stored = {file.path: file for file in _put(reg, take, step, alerts)}
        for source in rest:
            with _vanishing(source, alerts):
                stored[source.path] = _hashed(source, step)
    return dict(sorted(stored.items()))


def _put(
    reg: Registry, take: Sequence[sources.Source], step: disk.Progress | None, alerts: list[Alert]
) -> list[File]:
    """Store the sources; where one of them is gone by now, the others one by one."""
    blobs = reg._core.artifacts()
    try:
        return list(blobs.put_all(take, progress=step))
    except NotFound:
        stored = []
        for source in take:
            with _vanishing(source, alerts):
                stored.append(blobs.put(source))
        return stored


@contextmanager
def _vanishing(source: sources.Source, alerts: list[Alert]) -> Iterator[None]:
    """Turn an output that was removed meanwhile into an alert."""
    try:
        yield
    except NotFound:
        alerts.append(Alert("This output was removed before it could be stored.", file=source.path))


def _is_named(entry: FileMetadata | None) -> bool:
    """Return whether an annotation names a file: then it is a datum."""
    return entry is not None and bool(entry.models or entry.datasets or entry.alias or entry.tags)


def _is_kept(entry: FileMetadata | None) -> bool:
    """Return whether a file is kept for its own sake, and not only as one of a model version."""
    return entry is not None and bool(entry.datasets or entry.alias or entry.tags)


def _hashed(source: sources.Source, step: disk.Progress | None) -> File:
    reader = source.open()
    digest = hashlib.sha256()
    size = 0
    try:
        buffer = memoryview(bytearray(1 << 20))
        while count := reader.readinto(buffer):
            digest.update(buffer[:count])
            size += count
            if step is not None:
                step(count)
        reader.finish()
    finally:
        reader.close()
    return File(source.path, size, "sha256:" + digest.hexdigest())


def _content(found: _Found, stored: Mapping[str, File], common: Mapping[str, Any]) -> str:
    """Return the digest of everything that makes two ingests the same."""
    raw = {
        "outputs": [[file.path, file.digest] for file in stored.values()],
        "sidecars": [list(pair) for pair in found.sidecar_digests],
        "metrics": to_json(common["metrics"]),
        "params": to_json(common["params"]),
        "inputs": list(common["inputs"]),
    }
    return hashlib.sha256(codec.dumps(raw)).hexdigest()


def _before(reg: Registry, key: str) -> ev.OutputsIngested | None:
    """Return what the same ingest did before."""
    with reg._core.view() as view:
        return view.ingested(key)


def _repeated(reg: Registry, before: ev.OutputsIngested, alerts: Sequence[Alert]) -> IngestReport:
    """Return the report of an ingest that was done before; the alerts are today's."""
    rows = codec.outputs_of(before, reg._core.document)
    outputs = tuple(
        Output(
            row["path"],
            row["size"],
            row["digest"],
            Frozen(row.get("properties") or {}),
            Frozen(row.get("annotations") or {}),
        )
        for row in rows
    )
    versions = tuple(reg.version(uri) for uri in before.versions)
    for version in versions:
        if version.purged:  # its bytes were just stored again
            garbage.free(reg._core, sorted({file.digest for file in reg._manifest(version)}))
    return IngestReport(
        versions=versions,
        dataset_versions=before.dataset_versions,
        datums=before.datums,
        alerts=tuple(alerts),
        outputs=outputs,
        repeated=True,
    )


# --- registering --------------------------------------------------------------------------------------


def _registered(
    reg: Registry,
    wanted: Sequence[_Wanted],
    stored: Mapping[str, File],
    common: Mapping[str, Any],
    ingest_key: str,
    run: str | None,
    alerts: list[Alert],
) -> list[ModelVersion]:
    made = []
    for one in wanted:
        place: Any = {
            "file": sidecar.JSONL_NAME if one.line else one.paths[0] + sidecar.SUFFIX,
            "line": one.line,
        }
        try:
            version = reg._event(
                one.uri.name,
                [stored[path] for path in one.paths],
                tags=tuple(one.tags),
                run_id=run,
                key=f"{ingest_key}:{one.uri}"[:400],
                **common,
            )
            note = "\n\n".join(one.notes) or None
            if note is not None and len(note) > names.MAX_TEXT:
                alerts.append(
                    Alert(
                        f"The notes of {shown(str(one.uri))} are too long together; the end is cut.", **place
                    )
                )
                note = note[: names.MAX_TEXT]
            made.append(reg._register(version, {"note": note}, {}, wanted=_number(one.uri)))
        except (StoreUnavailable, Busy, Offline):
            raise  # the registry failed, not the annotation: the same call again goes on from here
        except (Conflict, KeyReused) as error:
            alerts.append(
                Alert(f"{shown(str(one.uri))}: {error.message}", key="valohai.model-versions", **place)
            )
        except ModelHubError as error:
            alerts.append(Alert(f"{shown(str(one.uri))}: {error}", key="valohai.model-versions", **place))
    return made


# --- data ---------------------------------------------------------------------------------------------


@define
class _WantedData:
    """One dataset version that annotations ask for, gathered from all files that carry its URI."""

    one: sidecar.DatasetAnnotation
    paths: list[str] = field(factory=list)
    line: int | None = None


def _datasets(
    reg: Registry,
    found: _Found,
    stored: Mapping[str, File],
    ingest_key: str,
    run: str | None,
    alerts: list[Alert],
) -> list[str]:
    """Make the dataset versions that annotations ask for; return their URIs."""
    by_uri: dict[str, _WantedData] = {}
    for path, entry in sorted(found.metadata.items()):
        for annotation in entry.datasets:
            if path not in stored:
                continue
            wanted = by_uri.setdefault(str(annotation.uri), _WantedData(annotation, line=entry.line))
            wanted.one = _one_of_two(wanted.one, annotation)
            wanted.paths.append(path)
    made = []
    for uri, wanted in _bases_first(by_uri):
        one = wanted.one
        place: Any = {
            "file": sidecar.JSONL_NAME if wanted.line else wanted.paths[0] + sidecar.SUFFIX,
            "line": wanted.line,
            "key": "valohai.dataset-versions",
        }
        try:
            base = None if one.from_ is None or one.start_fresh else dataset_version_uri(one.from_)
            version = commit_version(
                reg,
                one.uri,
                [stored[path] for path in wanted.paths],
                base=base,
                exclude=one.exclude,
                tags=one.tags,
                aliases=_good_aliases(reg, one, alerts, place),
                run_id=run,
                key=f"{ingest_key}:{uri}"[:400],
            )
            made.append(version.uri)
        except (StoreUnavailable, Busy, Offline):
            raise
        except ModelHubError as error:
            alerts.append(Alert(f"{shown(uri)}: {error.message} The outputs are kept.", **place))
    return made


def _bases_first(by_uri: Mapping[str, _WantedData]) -> list[tuple[str, _WantedData]]:
    """Return the versions in such an order that one made by this very ingest can be the base of another."""
    done: dict[str, _WantedData] = {}
    waiting = dict(sorted(by_uri.items()))
    while waiting:
        ready = [uri for uri, one in waiting.items() if one.one.from_ not in waiting or one.one.from_ == uri]
        for uri in ready or list(waiting):  # a circle: each will be told that its base is not there
            done[uri] = waiting.pop(uri)
    return list(done.items())


def _one_of_two(
    first: sidecar.DatasetAnnotation, second: sidecar.DatasetAnnotation
) -> sidecar.DatasetAnnotation:
    """Return what two files say of one version, together."""
    return evolve(
        first,
        from_=first.from_ or second.from_,
        start_fresh=first.start_fresh or second.start_fresh,
        exclude=tuple(dict.fromkeys((*first.exclude, *second.exclude))),
        targeting_aliases=tuple(dict.fromkeys((*first.targeting_aliases, *second.targeting_aliases))),
        tags=tuple(dict.fromkeys((*first.tags, *second.tags))),
    )


def _good_aliases(
    reg: Registry, one: sidecar.DatasetAnnotation, alerts: list[Alert], place: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the aliases that can be moved; one that names a version is an alert, and costs only itself."""
    good = []
    with reg._core.view() as view:
        versions = {*data_index.version_names(view, one.uri.name), one.uri.version}
    for alias in one.targeting_aliases:
        try:
            name = names.check_version_name(alias, "dataset alias")
            rules.dataset_alias_is_free(one.uri.name, name, name in versions)
            good.append(name)
        except ModelHubError as error:
            alerts.append(Alert(f"{shown(str(one.uri))}: {error.message}", **place))
    return tuple(good)


_DATUMS = 500  # in one entry


def _datums(
    reg: Registry, found: _Found, own: Mapping[str, File], ingest_key: str, run: str | None
) -> list[str]:
    """Give every kept output an id, and point the aliases that are asked for; return the datums' URIs.

    The ids are made of what makes this ingest the same as another, so that a repeated one changes nothing.
    """
    rows = []
    for path, file in own.items():
        entry = found.metadata.get(path)
        raw = f"{reg.id}\n{ingest_key}\n{path}\n{file.digest}"
        rows.append(
            ev.DatumNoted(
                id=str(uuid.uuid5(uuid.NAMESPACE_URL, raw)),
                name=path,
                size=file.size,
                digest=file.digest,
                tags=() if entry is None else entry.tags,
                fields=Frozen() if entry is None else entry.properties,
            )
        )
    wanted = {row.id: entry.alias for row in rows if (entry := found.metadata.get(row.name)) and entry.alias}

    def decide(part: Sequence[ev.DatumNoted], view: View, _seal: Any) -> list[ev.Event]:
        new = tuple(row for row in part if data_index.datum(view, row.id) is None)
        events: list[ev.Event] = [ev.DatumsStored(datums=new, run_id=run)] if new else []
        return events + [
            ev.DatumAliasMoved(alias=wanted[row.id], datum=row.id) for row in new if row.id in wanted
        ]

    scope = "run:" + run if run else "registry"
    for part in _parts(rows):
        reg._commit(scope, functools.partial(decide, part))
    return [f"datum://{row.id}" for row in rows]


def _parts(rows: Sequence[ev.DatumNoted]) -> Iterator[list[ev.DatumNoted]]:
    """Yield the rows in pieces that fit an entry."""
    part: list[ev.DatumNoted] = []
    size = 0
    for row in rows:
        weight = len(codec.dumps(to_json(row.fields))) + len(row.name) + 300
        if part and (len(part) >= _DATUMS or size + weight > _MAX_ENTRY):
            yield part
            part, size = [], 0
        part.append(row)
        size += weight
    if part:
        yield part


_MAX_ENTRY = 600_000  # bytes of properties in one entry


# --- recording ----------------------------------------------------------------------------------------


def _output(file: File, entry: FileMetadata | None) -> Output:
    if entry is None:
        return Output(file.path, file.size, file.digest)
    annotations: dict[str, Any] = {}
    if entry.models:
        annotations["models"] = tuple(str(one.uri) for one in entry.models)
    if entry.datasets:
        annotations["datasets"] = tuple(_dataset(one) for one in entry.datasets)
    if entry.alias:
        annotations["alias"] = entry.alias
    if entry.tags:
        annotations["tags"] = entry.tags
    return Output(file.path, file.size, file.digest, entry.properties, Frozen(annotations))


def _dataset(one: sidecar.DatasetAnnotation) -> Frozen:
    """Return the facts of a dataset annotation, as VALOHAI spells them."""
    raw = {
        "uri": str(one.uri),
        "from": one.from_,
        "start_fresh": one.start_fresh,
        "exclude": one.exclude,
        "targeting_aliases": one.targeting_aliases,
        "valohai.tags": one.tags,
        "packaging": one.packaging,
        "associated_project_ids": one.associated_project_ids,
        **one.extra,
    }
    return Frozen({name: value for name, value in raw.items() if value not in (None, False, ())})


def _record(
    reg: Registry,
    key: str,
    run: str | None,
    report: IngestReport,
    own: set[str],
) -> None:
    """Put what was ingested into the journal, so that the same again changes nothing."""
    rows = tuple(
        Frozen(
            {
                "path": output.path,
                "size": output.size,
                "digest": output.digest,
                **({"properties": output.properties} if output.properties else {}),
                **({"annotations": output.annotations} if output.annotations else {}),
                **({"kept": True} if output.path in own else {}),
            }
        )
        for output in report.outputs
    )
    text = codec.dumps([to_json(row) for row in rows])
    document = None
    if len(rows) > _INLINE_OUTPUTS or len(text) > 200_000:
        document, rows = reg._core.artifacts().put_bytes(text), ()
    event = ev.OutputsIngested(
        key=key,
        run_id=run,
        outputs=rows,
        document=document,
        versions=tuple(version.uri for version in report.versions),
        dataset_versions=report.dataset_versions,
        datums=report.datums if len(report.datums) <= _INLINE_OUTPUTS else (),
        alerts=tuple(_kept(report.alerts)),
    )

    def decide(view: Any, _seal: Any) -> list[ev.Event]:
        return [] if view.ingested(key) else [event]

    reg._commit("run:" + run if run else "registry", decide)


def _kept(alerts: Sequence[Alert]) -> Iterator[Frozen]:
    """Yield the first alerts, as many as an entry may hold; the report has all of them."""
    size = 0
    for alert in alerts[:_MAX_ALERTS]:
        row = Frozen(_alert_row(alert))
        size += len(codec.dumps(to_json(row)))
        if size > _MAX_ALERT_BYTES:
            return
        yield row


def _alert_row(alert: Alert) -> dict[str, Any]:
    from attrs import asdict

    return {
        name: value
        for name, value in asdict(evolve(alert, message=alert.message[:500])).items()
        if value is not None
    }
