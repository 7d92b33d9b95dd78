"""From a URI to files on this disk: parse, pin, plan, fetch, verify, place. And the record of the use.

What a URI meant is remembered beside the cache (a *pin*), so that ``v3`` and ``sha256:…`` resolve
without the store, and a moving name does for as long as the caller allows.
"""

from __future__ import annotations

import fnmatch
import functools
import glob
import hashlib
import json
import logging
import os
import re
import threading
import time
import unicodedata
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

from attrs import evolve, frozen

from modelhub_sdk import active, surroundings
from modelhub_sdk.arguments import listed, switch
from modelhub_sdk.blobs import disk, place
from modelhub_sdk.blobs import link as links
from modelhub_sdk.blobs import progress as bars
from modelhub_sdk.core import Core, pins_folder
from modelhub_sdk.domain import names
from modelhub_sdk.domain.entities import (
    Dataset,
    DatasetVersion,
    Datum,
    File,
    ModelVersion,
    Resolved,
)
from modelhub_sdk.domain.uri import ByDigest, DatasetURI, DatumURI, ModelURI, Number
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.errors import (
    CredentialsRefused,
    InvalidDocument,
    InvalidName,
    ModelHubError,
    NotApproved,
    NotFound,
    Offline,
    Purged,
    StoreUnavailable,
    nearest,
    shown,
)
from modelhub_sdk.formats import codec
from modelhub_sdk.index import data
from modelhub_sdk.index.queries import NOW, View
from modelhub_sdk.ports import MAX_NOTE, Note
from modelhub_sdk.references import dataset_version_uri, found_version, pin, pin_dataset, version_uri

log = logging.getLogger("modelhub_sdk")

_LARGEST_PIN = 256 << 20  # bytes of what a name meant: a million files
_WAIT = 0.5  # seconds that an inference waits for the record of its use; then it is spooled
_URI: TypeAlias = ModelURI | DatasetURI | DatumURI
_REMEMBERED_FOR = (
    60.0  # seconds for which what a name meant is not written down again, while it means the same
)
_SPOOLED = 200  # spooled uses delivered along with a new one


@frozen
class Pinned:
    """What a URI means: the version with its files, what of it was purged, when the registry was asked."""

    version: ModelVersion | DatasetVersion | Datum
    files: tuple[File, ...]
    as_of: datetime
    require: str | None = None
    gone: Mapping[str, str] = Frozen()
    gone_otherwise: str = ""
    offline: bool = False


def resolve(
    core: Core,
    at: int,
    ref: Any,
    into: str | os.PathLike[str] | None,
    *,
    files: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] | None,
    require: str | None,
    stale_ok: timedelta | None,
    route_key: str | int | None,
    link: str | None,
    verify: str | None,
    progress: bool | None,
    overwrite: bool,
) -> Resolved:
    """Bring the files of a version onto this disk. See `Registry.resolve`."""
    uri = uri_of(ref)
    if require not in (None, "", "approved"):
        raise InvalidDocument(f"require is 'approved' or nothing, not {shown(require)}.")
    if stale_ok is not None and not isinstance(stale_ok, timedelta):
        raise InvalidDocument("stale_ok is a datetime.timedelta.", hint="For example timedelta(hours=1).")
    switch(overwrite, "overwrite")
    disk.check_verify(verify)
    how = (
        links.check_how(link)
        if link is not None
        else links.check_how(surroundings.setting("LINK") or "auto", "MODELHUB_LINK")
    )
    if into is not None and not isinstance(into, (str, os.PathLike)):
        raise InvalidName(f"into={shown(into)} is not a folder.", hint="Pass the path of a folder.")
    target = None if into is None else os.fsdecode(into)
    if route_key is not None:
        route_key = names.check_text(
            str(route_key) if isinstance(route_key, int) else route_key, "route_key", 1000
        )
    pinned = _pin(core, at, uri, route_key, stale_ok)
    if isinstance(uri, ModelURI) and isinstance(pinned.version, ModelVersion):
        _check_status(uri, pinned.version, pinned.require or require)
    inner_path = None if isinstance(uri, DatumURI) else uri.path
    wanted = _selected(pinned, inner_path, files)
    try:
        check_purged(pinned, wanted)
    except Purged:  # who has the bytes still is to be told so without the registry too
        if not pinned.offline and at == NOW:
            _remember(core, uri, pinned)
        raise
    path = _placed(
        core, pinned, wanted, target, how=how, verify=verify, progress=progress, overwrite=overwrite
    )
    _Use(core, uri, pinned).record()
    if not pinned.offline and at == NOW:
        _remember(core, uri, pinned)
    paths = tuple(file.path for file in wanted)
    if inner_path is not None:
        path = path / inner_path
        inner = tuple(p.removeprefix(inner_path + "/") for p in paths)
        paths = (Path(inner_path).name,) if paths == (inner_path,) else inner
    elif isinstance(uri, DatumURI):
        path = path / paths[0]
    found = Resolved(
        uri=pinned.version.uri, path=str(path), files=paths, version=pinned.version, as_of=pinned.as_of
    )
    if (run := active.current()) is not None:
        run.resolved(found, str(uri), core.registry_id)
    return found


def pinned(core: Core, uri: _URI, *, any_status: bool = False) -> Pinned:
    """Return what *uri* means now, by the rules of `resolve`; with *any_status* also what may not be resolved."""
    found = _pin(core, NOW, uri, None, None)
    if not any_status and isinstance(uri, ModelURI) and isinstance(found.version, ModelVersion):
        _check_status(uri, found.version, found.require)
    return found


def files_at(core: Core, uri: _URI) -> tuple[Pinned, tuple[File, ...]]:
    """Return what *uri* means now, by the rules of `resolve`, and the files that it names.

    Raises:
        NotFound, NotApproved, Purged: as for `resolve`.
    """
    found = pinned(core, uri)
    files = _selected(found, None if isinstance(uri, DatumURI) else uri.path, None)
    check_purged(found, files)
    return found, files


def record_use(core: Core, uri: _URI, found: Pinned) -> None:
    """Record that what *uri* meant is used."""
    _Use(core, uri, found).record()


def uri_of(ref: Any) -> _URI:
    """Return what is to be resolved: a version of a model or of a dataset, a datum, or a file of one."""
    if isinstance(ref, Datum):
        return DatumURI(ref.id)
    if isinstance(ref, (Dataset, DatasetVersion)):
        return dataset_version_uri(ref)
    if isinstance(ref, str) and ref.startswith("dataset://"):
        return dataset_version_uri(ref)
    if isinstance(ref, str) and ref.startswith("datum://"):
        return DatumURI.parse(ref)
    return version_uri(ref)


# --- what it means ------------------------------------------------------------------------------------


def _pin(core: Core, at: int, uri: _URI, route_key: str | None, stale_ok: timedelta | None) -> Pinned:
    """Ask the registry; where it cannot be reached, what is remembered."""
    try:
        if isinstance(uri, ModelURI):
            return _pin_model(core, at, uri, route_key)
        return _pin_dataset(core, at, uri) if isinstance(uri, DatasetURI) else _pin_datum(core, at, uri)
    except (StoreUnavailable, Offline) as error:
        if isinstance(error, CredentialsRefused):
            raise
        return _remembered(core, uri, stale_ok, error)
    except NotFound as error:
        with core.view() as view:
            if (
                isinstance(uri, ModelURI) and not view.model_names()
            ):  # a place that was mistyped, or not mounted
                error.hint = f"The registry {shown(core.url, 200)} has no models at all: is it the right one?"
        raise


def _pin_model(core: Core, at: int, uri: ModelURI, route_key: str | None) -> Pinned:
    as_of = core.clock()
    with core.view(at) as view:
        _forget_deleted(core, view)
        number = pin(view, uri, route_key)
        version = found_version(view, uri.name, number)
        require = view.settings().get("require")
        document = None if version.files else view.registered(uri.name, number).document
        purge = View(view.sql).purge(uri.name, number)  # what is gone is gone, also for a view of the past
    if document is not None and (purge is None or purge.whole is None):
        version = evolve(version, files=core.manifest(document, version.uri))
    if purge is None:
        return Pinned(version, version.files, as_of, require)
    gone = Frozen({path: one.told() for path, one in purge.files.items()})
    rest = purge.whole.told() if purge.whole is not None else ""
    return Pinned(version, version.files, as_of, require, gone=gone, gone_otherwise=rest)


def _forget_deleted(core: Core, view: View) -> None:
    """Let the cache drop what was deleted since it was last asked; costs one look into the index."""
    last = View(view.sql).last_deletion()
    if last <= core.dropped:
        return
    cache = core.cache()
    # Copies of a registry share its id, and go their own ways afterwards: the place says which it is.
    note = Path(cache.path) / "dropped" / core.registry_id / pins_folder(core).name
    with suppress(OSError, ValueError):
        core.dropped = max(core.dropped, int(disk.read_file(cache.note(note), 100)))
    if last <= core.dropped:
        return
    known = View(view.sql).garbage()
    with suppress(ModelHubError):
        cache.drop(
            digest for digest, one in known.items() if one.state == "deleted" and one.seq > core.dropped
        )
        cache.keep(note, str(last).encode())
    core.dropped = last


def _pin_dataset(core: Core, at: int, uri: DatasetURI) -> Pinned:
    as_of = core.clock()
    with core.view(at) as view:
        _forget_deleted(core, view)
        number = pin_dataset(view, uri)
        version = data.version(view, uri.name, number)
        document = data.born(view, uri.name, number).document
    if document is not None:
        version = evolve(version, files=core.manifest(document, version.uri))
    return Pinned(version, version.files, as_of)


def _pin_datum(core: Core, at: int, uri: DatumURI) -> Pinned:
    as_of = core.clock()
    with core.view(at) as view:
        _forget_deleted(core, view)
        found = found_datum(view, uri)
        purges = (
            [] if view.needed({found.digest}) else [view.purge(*key) for key in view.holding(found.digest)]
        )
    pinned = Pinned(found, _one_file(found), as_of)
    for purge in purges:  # a file that only a purged version needed is gone with it
        if purge is not None and core.blobs is not None and not core.blobs.has(found.digest):
            one = purge.whole or next(iter(purge.files.values()))
            return evolve(pinned, gone_otherwise=one.told())
    return pinned


def found_datum(view: View, uri: DatumURI) -> Datum:
    """Return the datum with this id, else the one that this alias points at.

    Raises:
        NotFound: there is neither.
    """
    found = data.datum(view, uri.id) or data.datum(view, data.datum_alias(view, uri.id) or "")
    if found is None:
        near = nearest(uri.id, data.datum_aliases(view))
        raise NotFound(
            f"There is no datum with the id or alias {shown(uri.id)}.",
            hint=f"Did you mean {', '.join(near)}?" if near else "An output gets an alias by valohai.alias.",
            nearest=near,
        )
    return found


def _one_file(found: Datum) -> tuple[File, ...]:
    """A datum is placed under its own name, without the folders that it lay in."""
    return (File(found.name.rpartition("/")[2], found.size, found.digest),)


def _check_status(uri: ModelURI, version: ModelVersion, require: str | None) -> None:
    state = "archived" if version.archived else version.status
    by_number = isinstance(uri.selector, Number)
    approved = version.status == "approved" and not version.archived
    if require == "approved" and not approved:
        raise NotApproved(
            f"{version.uri} is {state}, and only approved versions may be resolved here.",
            hint="Approve it, or resolve model://" + version.model + "/latest.",
            uri=version.uri,
            status=version.status,
        )
    if version.status == "rejected" or version.archived:
        reason = (
            f" ({shown(version.reason, 200)[1:-1]})"
            if version.status == "rejected" and version.reason
            else ""
        )
        if not by_number:
            raise NotApproved(
                f"{shown(str(uri))} is {version.uri}, which is {state}{reason}.",
                hint=f"Resolve it by its number if you mean it: {version.uri}",
                uri=version.uri,
                status=version.status,
            )
        log.warning("%s is %s%s, and was resolved by its number", version.uri, state, reason)


def _selected(pinned: Pinned, path: str | None, patterns: Any) -> tuple[File, ...]:
    """Return the files that are asked for: those under *path* that fit the *patterns*, which begin there."""
    version, found = pinned.version, pinned.files
    if path is not None:
        found = tuple(f for f in pinned.files if f.path == path or f.path.startswith(path + "/"))
        if not found and pinned.files:
            known = [file.path for file in pinned.files]
            raise NotFound(
                f"{version.uri} has no file {shown(path)}.", nearest=nearest(path, known), hint=some(known)
            )
    if patterns is None:
        return found
    given = [
        _pattern(one)
        for one in ([patterns] if isinstance(patterns, (str, os.PathLike)) else listed(patterns, "files"))
    ]
    if not given:
        raise InvalidName("files= is empty, and would choose no file.", hint="Leave it out for all files.")
    top = 0 if path is None else len(path) + 1
    inner = [file.path[top:] or file.path.rpartition("/")[2] for file in found]
    exact = set(inner)
    keep: list[str] = []
    drop: list[str] = []
    for one in given:
        plain = one.removeprefix("!")
        plain = glob.escape(plain) if plain in exact else plain  # a file may be called w[1].bin
        (drop if one.startswith("!") else keep).append(plain)
        if one == plain and not glob.has_magic(one) and not any(_fits(name, one) for name in inner):
            raise NotFound(
                f"{version.uri} has no file or folder {shown(one)}.",
                nearest=nearest(one, inner),
                hint=some(inner),
            )
    chosen = tuple(
        file
        for file, name in zip(found, inner, strict=True)
        if any(_fits(name, one) for one in keep or ["*"]) and not any(_fits(name, one) for one in drop)
    )
    if not chosen and found:
        raise NotFound(f"No file of {version.uri} fits {', '.join(map(shown, given))}.", hint=some(inner))
    return chosen


def _pattern(given: Any) -> str:
    """Return a pattern of files in one form: ``!`` first, no ``./``, composed as the paths in manifests are."""
    text = os.fspath(given) if isinstance(given, os.PathLike) else given
    text = unicodedata.normalize("NFC", names.check_text(text, "files", 1000))
    bang = "!" if text.startswith("!") else ""
    plain = text.removeprefix("!").removeprefix("./")
    if not plain.strip("!/"):
        raise InvalidName(
            f"{shown(text)} is not a pattern of files.", hint='For example ["*.bin", "!old/*"].'
        )
    return bang + plain


def some(known: Sequence[str]) -> str:
    """Return a hint that names some of the files that there are."""
    more = f" and {len(known) - 5} more" if len(known) > 5 else ""
    return f"It has {', '.join(map(shown, known[:5]))}{more}."


def _fits(path: str, pattern: str) -> bool:
    """Return whether a file fits: by its path, by a folder that it lies in, or by a glob.

    A glob with a slash fits from the top, one without fits a name in any folder; ``**/`` also stands for no folder.
    """
    plain = pattern.rstrip("/")
    if path == plain or path.startswith(plain + "/"):
        return True
    head, deep, tail = pattern.partition("**/")
    if deep and _fits(path, head + tail):
        return True
    return fnmatch.fnmatchcase(path if "/" in pattern else path.rpartition("/")[2], pattern)


def check_purged(pinned: Pinned, wanted: Sequence[File]) -> None:
    """Raise Purged when some of *wanted* was given up."""
    lost: dict[str, list[str]] = {}  # how it came -> the paths
    for file in wanted:
        if why := pinned.gone.get(file.path, pinned.gone_otherwise):
            lost.setdefault(why, []).append(file.path)
    if not wanted and pinned.gone_otherwise:
        lost[pinned.gone_otherwise] = []
    if lost:
        raise Purged(
            "; ".join(
                f"{_lost(paths, pinned)} of {pinned.version.uri} were purged {why}"
                for why, paths in list(lost.items())[:5]
            )
        )


def _lost(paths: Sequence[str], pinned: Pinned) -> str:
    """Return how to call the files *paths* that were given up."""
    return "The files" if not paths or len(paths) == len(pinned.files) else ", ".join(map(shown, paths[:5]))


# --- the bytes ----------------------------------------------------------------------------------------


def _placed(
    core: Core,
    pinned: Pinned,
    wanted: tuple[File, ...],
    target: str | None,
    *,
    how: str,
    verify: str | None,
    progress: bool | None,
    overwrite: bool,
) -> Path:
    cache, store = core.cache(), None if pinned.offline else core.blobs
    whole = wanted is pinned.files and not isinstance(pinned.version, Datum)
    digest = pinned.version.digest if whole else None
    label = str(pinned.version)
    paths: dict[str, Path] = {}
    if store is None:
        folder = cache.cached_folder(wanted, digest=digest, verify=verify)
        if folder is None:
            raise Offline(
                f"{pinned.version.uri} is not completely in the cache, and {shown(core.url, 200)} cannot be reached.",
                hint="Resolve it once while the registry can be reached.",
            )
        if target is None:
            return folder
        paths.update((file.digest, folder / file.path) for file in wanted)
    elif target is None:
        with bars.bar(_size(wanted), label, show=progress) as step:
            return cache.folder(wanted, store, digest=digest, progress=step, verify=verify)

    def fetch(needed: Sequence[File]) -> None:
        if store is not None:
            with bars.bar(_size(needed), label, show=progress) as step:
                paths.update(cache.fetch_all(needed, store, progress=step, verify=verify))

    def heal(file: File) -> Path:
        return cache.fetch(file, core.artifacts(), verify="always")

    with cache.lease(wanted):
        return place.into(
            target,
            wanted,
            lambda file: paths[file.digest],
            before=fetch,
            link=how,
            overwrite=overwrite,
            records=cache.records,
            heal=None if store is None else heal,
            known=_held(core, pinned.version),
            source=pinned.version.uri,
            verify=verify,
            watch=lambda total: bars.bar(total, f"{label} into {Path(target).name}", show=progress),
        ).path


def _held(core: Core, version: ModelVersion | DatasetVersion | Datum) -> Callable[[str], Collection[str]]:
    """Return what tells which digests a path has in any version of the same thing: nothing is lost with such a file.

    Asked only where a folder holds files that nobody here is known to have placed.
    """

    @functools.cache
    def digests() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        with suppress(ModelHubError), core.view() as view:
            if isinstance(version, ModelVersion):
                name = subject = version.model
                documents = view.documents()
            elif isinstance(version, DatasetVersion):
                name, subject = version.dataset, data.subject(version.dataset)
                documents = data.documents(view)
            else:
                return found
            stands = view.paths(subject)
            held = view.needed(
                {digest for _, digest in stands}
            )  # what was purged would be lost with the file
            for path, digest in stands:
                if digest in held:
                    found.setdefault(path, set()).add(digest)
            for _, number, document in [one for one in documents if one[0] == name]:
                purge = view.purge(subject, number)
                if purge is not None and purge.whole is not None:
                    continue
                gone = () if purge is None else purge.files
                for file in core.manifest(document, f"version {number} of {name}"):
                    if file.path not in gone:
                        found.setdefault(file.path, set()).add(file.digest)
        return found

    return lambda path: digests().get(path, ())


def _size(files: Sequence[File]) -> int:
    return sum(file.size for file in files)


# --- pins ---------------------------------------------------------------------------------------------


def _pin_file(core: Core, uri: _URI, selector: str) -> Path:
    # Names cannot leave the folder; a digest's colon is no good on Windows. No model is called @….
    if isinstance(uri, ModelURI):
        return pins_folder(core) / uri.name / (selector.replace(":", "-") + ".json")
    kind = "@dataset" if isinstance(uri, DatasetURI) else "@datum"
    return pins_folder(core) / kind / (uri.name if isinstance(uri, DatasetURI) else "") / f"{selector}.json"


def _selector(uri: _URI) -> str:
    if isinstance(uri, ModelURI):
        return str(uri.selector)
    return str(uri.version) if isinstance(uri, DatasetURI) else uri.id


def _is_fixed(uri: _URI, version: ModelVersion | DatasetVersion | Datum) -> bool:
    """Return whether *uri* can never mean anything but *version*."""
    if isinstance(uri, ModelURI):
        return isinstance(uri.selector, (Number, ByDigest))
    return f"{uri}/".startswith(version.uri + "/")  # an alias may begin as the name of a version does


def _remember(core: Core, uri: _URI, pinned: Pinned) -> None:
    """Note what *uri* meant; a cache that cannot be written remembers nothing, and nothing fails."""
    version = pinned.version
    selectors = {_selector(uri), version.uri.rpartition("/")[2]}
    if isinstance(version, ModelVersion):
        usable = version.status != "rejected" and not version.archived
        if usable and not core.cache().note(_pin_file(core, uri, version.digest)).exists():
            # What the digest means is known only when it was asked for; this is a good guess.
            selectors.add(version.digest)
        # What people typed, and who they are, stays out: no erasure would ever reach this user's cache.
        version = evolve(
            version,
            note=None,
            description=None,
            fields=Frozen(),
            reason=None,
            comments=(),
            evaluations=tuple(evolve(one, note=None, by=None) for one in version.evaluations),
            attachments=tuple(evolve(one, by=None) for one in version.attachments),
            created_by=None,
            decided_by=None,
        )
    elif isinstance(version, DatasetVersion):
        version = evolve(version, fields=Frozen(), created_by=None)
    else:
        version = evolve(version, created_by=None)
    files = [_pin_file(core, uri, selector) for selector in selectors]
    gone = sorted(pinned.gone)
    state, now = (version, pinned.require, gone, bool(pinned.gone_otherwise)), time.monotonic()
    written = [core.remembered.get(file) for file in files]
    if all(one is not None and one[0] == state and now - one[1] < _REMEMBERED_FOR for one in written):
        return
    body: dict[str, Any] = {
        "as_of": codec.print_time(pinned.as_of),
        "require": pinned.require,
        "url": core.url,
    }
    body |= {"gone": gone, "all_gone": bool(pinned.gone_otherwise)}
    text = codec.dumps({**body, "version": codec.unstructure_version(version)})
    for file in files:
        with suppress(OSError, ModelHubError):
            core.cache().keep(file, text)
            core.remembered[file] = state, now


def _remembered(core: Core, uri: _URI, stale_ok: timedelta | None, error: ModelHubError) -> Pinned:
    """Return what *uri* meant when it was last resolved here.

    Raises:
        Offline: it was not, or it is a moving name and *stale_ok* does not reach that far.
    """
    kind: Any = {"ModelURI": ModelVersion, "DatasetURI": DatasetVersion}.get(type(uri).__name__, Datum)
    try:
        raw = codec.loads(
            disk.read_file(core.cache().note(_pin_file(core, uri, _selector(uri))), _LARGEST_PIN)
        )
        version = codec.structure_version(raw["version"], kind)
        as_of = codec.parse_time(raw["as_of"])
        if raw["url"] != core.url or (isinstance(uri, ModelURI) and version.model != uri.name):
            raise ValueError(raw["url"])
        why = f"before {as_of:%Y-%m-%d}, when the registry was asked last: it says by whom, and why"
        gone = Frozen({str(path): why for path in raw.get("gone", ())})
        otherwise = why if raw.get("all_gone") else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ModelHubError):
        raise Offline(
            f"{shown(str(uri))} was never resolved here, and {error.message}",
            hint="Resolve it once while the registry can be reached.",
        ) from None
    age = core.clock() - as_of
    if not _is_fixed(uri, version) and (stale_ok is None or age > stale_ok):
        raise Offline(
            f"{shown(str(uri))} can move, and the registry cannot be asked: {error.message}"
            f" It was {version.uri} {_ago(age)} ago.",
            hint=f"Resolve {version.uri}, or pass stale_ok=timedelta(...) to accept that age.",
        )
    log.warning("%s: answered from the cache, as of %s", uri, as_of.isoformat(timespec="seconds"))
    files = _one_file(version) if isinstance(version, Datum) else version.files
    return Pinned(version, files, as_of, raw.get("require"), gone, otherwise, offline=True)


def _ago(age: timedelta) -> str:
    hours = age.total_seconds() / 3600
    return (
        f"{hours / 24:.0f} days"
        if hours > 48
        else f"{hours:.0f} hours"
        if hours > 2
        else f"{hours * 60:.0f} min"
    )


# --- uses ---------------------------------------------------------------------------------------------


class _Use:
    """The record of one use, delivered beside the transfer; what cannot be delivered in time is spooled."""

    _lost = 0

    def __init__(self, core: Core, uri: _URI, pinned: Pinned) -> None:
        self._core = core
        self._note = Note(
            core.new_id(),
            codec.dumps(
                {
                    "kind": "use",
                    "uri": pinned.version.uri,
                    "asked": str(uri),
                    "at": codec.print_time(core.clock()),
                    "actor": core.actor,
                    "host": core.host,
                    "run_id": active.run_id(),
                }
            ),
        )
        self._done = False
        self._spool_only = pinned.offline or core.read_only

    def record(self) -> None:
        """Deliver within a moment, or else leave the note for a later process."""
        if not self._spool_only:
            thread = threading.Thread(target=self._deliver, name="modelhub-use", daemon=True)
            with suppress(
                RuntimeError
            ):  # no thread to be had: the interpreter ends, or the container is full
                thread.start()
                thread.join(_WAIT)
        if not self._done:
            self._spool()

    def _deliver(self) -> None:
        try:
            waiting = _spooled(self._core)
            self._core.place.store.note([self._note, *(note for note, _ in waiting)])
        except Exception as error:  # noqa: BLE001  whatever it is, an inference goes on
            log.debug("a use was not delivered: %s", type(error).__name__)
            return
        self._done = True
        for _, file in waiting:
            with suppress(OSError):
                file.unlink()

    def _spool(self) -> None:
        try:
            self._core.cache().keep(_spool(self._core) / f"{self._note.id}.json", self._note.body)
        except (OSError, ModelHubError):
            _Use._lost += 1
            if _Use._lost == 1:
                with suppress(RuntimeWarning):  # where warnings are errors: an inference goes on
                    warnings.warn(
                        f"That {json.loads(self._note.body)['uri']} was used could not be recorded: neither the registry"
                        f" {shown(self._core.url, 200)} nor the cache {shown(self._core.cache().path, 200)} can be written.",
                        RuntimeWarning,
                        stacklevel=5,
                    )


def _spool(core: Core) -> Path:
    """Return where this user's cache keeps the uses of this registry that wait to be delivered."""
    return Path(core.cache().path) / "spool" / hashlib.sha256(core.url.encode()).hexdigest()[:32]


def _spooled(core: Core) -> list[tuple[Note, Path]]:
    """Return some of the uses that wait, each with its file."""
    found = []
    with suppress(OSError, ModelHubError):
        folder = core.cache().note(_spool(core))
        for name in sorted(os.listdir(folder))[:_SPOOLED]:
            if re.fullmatch(r"[0-9a-f]{32}\.json", name):
                file = folder / name
                with suppress(disk.NotAFile):
                    found.append((Note(name[:-5], disk.read_file(file, MAX_NOTE)), file))
    return found


def deliver_spooled(core: Core) -> None:
    """Deliver the uses that wait in this user's cache, as far as they can be removed from it.

    Raises:
        StoreUnavailable: the registry cannot be reached.
    """
    while waiting := _spooled(core):
        core.place.store.note([note for note, _ in waiting])
        try:
            for _, file in waiting:
                file.unlink(missing_ok=True)
        except OSError:
            return


__all__ = ["Pinned", "check_purged", "deliver_spooled", "pinned", "record_use", "resolve", "some"]
