"""The verbs about datasets: what users pass, checked, and committed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import asdict, evolve

from modelhub_sdk.arguments import changes_of, listed, reason_of
from modelhub_sdk.blobs import progress as bars
from modelhub_sdk.blobs import sources
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain import names, rules
from modelhub_sdk.domain.entities import Dataset, DatasetVersion, File
from modelhub_sdk.domain.events import Event, Sealer
from modelhub_sdk.domain.uri import DatasetURI
from modelhub_sdk.domain.values import Frozen, Value, normalise_fields, to_json
from modelhub_sdk.errors import InvalidDocument, InvalidURI, NotFound, nearest, shown
from modelhub_sdk.formats import codec, manifest
from modelhub_sdk.hidden import hidden
from modelhub_sdk.index import data
from modelhub_sdk.index.queries import View
from modelhub_sdk.own_sources import OwnSources
from modelhub_sdk.references import dataset_exists, dataset_name, dataset_version_uri, pin_dataset

if TYPE_CHECKING:
    from modelhub_sdk.registry import Registry


def create(
    reg: Registry,
    name: str,
    *,
    title: str | None,
    description: str | None,
    owner: str | None,
    tags: Iterable[str],
    fields: Mapping[str, Any] | None,
    projects: Iterable[str],
) -> Dataset:
    """Make a dataset. See `Registry.create_dataset`."""
    good = names.check_name(name, "dataset name")
    changes = changes_of(
        title=title, description=description, owner=owner, fields=fields, tags=tags, projects=projects
    )
    if reg._core.project and not changes.projects:
        changes = evolve(changes, projects=(reg._core.project,))

    def decide(view: View, seal: Sealer) -> list[Event]:
        return rules.create_dataset(data.has_dataset(view, good), seal, good, changes)

    reg._commit("dataset:" + good, decide)
    return reg.dataset(good)


def create_version(
    reg: Registry,
    ref: object,
    files: Any,
    *,
    based_on: object,
    exclude: Iterable[str],
    fields: Mapping[str, Any] | None,
    tags: Iterable[str],
    aliases: Iterable[str],
    run_id: str | None,
    ignore: Iterable[str],
    idempotency_key: str | None,
    progress: bool | None,
) -> DatasetVersion:
    """Make a version of a dataset. See `Registry.create_dataset_version`."""
    uri = dataset_version_uri(ref)
    own = normalise_fields(fields)
    good_tags = tuple(names.check_tag(tag) for tag in listed(tags, "tags"))
    good_aliases = tuple(names.check_version_name(one, "dataset alias") for one in listed(aliases, "aliases"))
    leave = tuple(names.check_text(one, "exclude", 2000) for one in listed(exclude, "exclude"))
    base = None if based_on is None else dataset_version_uri(based_on)
    key = None if idempotency_key is None else names.check_text(idempotency_key, "idempotency_key", 200)
    reg._writable()
    files = hidden(files)
    origins = OwnSources(reg._core)
    found = sources.collect(
        [] if files is None else files,
        ignore=ignore,
        forbidden=reg._own(),
        storage_options=reg._core.options_of,
        own=origins,
    )
    with reg._core.view() as view:
        if key is None or view.key(data.subject(uri.name), key) is None:
            reg._core.check_frozen(view)
            free(view, uri.name, str(uri.version))
        if base is not None:
            pin_dataset(view, base)
    with bars.bar(found.total, f"storing {uri.name}", show=progress) as step:
        stored = reg._core.artifacts().put_all(found, progress=step)
    origins.note(reg)
    return commit_version(
        reg,
        uri,
        stored,
        base=base,
        exclude=leave,
        fields=own,
        tags=good_tags,
        aliases=good_aliases,
        run_id=run_id,
        key=key,
        origins=origins,
    )


def commit_version(
    reg: Registry,
    uri: DatasetURI,
    stored: Sequence[File],
    *,
    base: DatasetURI | None = None,
    exclude: Sequence[str] = (),
    fields: Mapping[str, Value | None] = Frozen(),
    tags: Sequence[str] = (),
    aliases: Sequence[str] = (),
    run_id: str | None = None,
    key: str | None = None,
    origins: OwnSources | None = None,
) -> DatasetVersion:
    """Commit a version whose bytes are stored: the files of *base* but for *exclude*, and then *stored* over them."""
    files = {}
    base_name: str | None = None
    if base is not None:
        start = reg.dataset_version(str(DatasetURI(base.name, base.version)))
        base_name = start.uri
        files = {file.path: file for file in start.files if not _excluded(file.path, exclude)}
    files |= {file.path: file for file in stored}
    if not files:
        raise InvalidDocument(
            f"There is no file for {uri}.", hint="A version of a dataset needs at least one file."
        )
    names.check_paths(files)
    ordered = manifest.ordered(files.values())
    document = None
    if reg._many(ordered):
        document = reg._core.artifacts().put_bytes(manifest.encode(ordered))
    digest = manifest.digest(ordered)
    asked = None if origins is None else origins.asked(stored, ())
    what = digest if asked is None else asdict(asked)
    content = hashlib.sha256(
        codec.dumps([what, base_name, sorted(tags), {name: to_json(value) for name, value in fields.items()}])
    ).hexdigest()
    number = 0

    def decide(view: View, seal: Sealer) -> list[Event]:
        nonlocal number
        name = uri.name
        if key is not None:
            before = rules.same_key(view.key(data.subject(name), key), key, content, f"dataset://{name}")
            if before is not None:
                number = before
                return []
        free(view, name, str(uri.version), aliases)
        events: list[Event] = []
        if not data.has_dataset(view, name):
            projects = (reg._core.project,) if reg._core.project else ()
            events.append(ev.DatasetCreated(dataset=name, projects=projects))
        number = data.last_number(view, name) + 1
        events.append(
            ev.DatasetVersionCreated(
                dataset=name,
                version=str(uri.version),
                number=number,
                manifest=digest,
                size=sum(file.size for file in ordered),
                files=() if document else ordered,
                document=document,
                base=base_name,
                tags=tuple(dict.fromkeys(tags)),
                fields=Frozen({n: seal.value(v) for n, v in fields.items() if v is not None}),
                run_id=run_id,
                inputs=() if origins is None else origins.inputs(()),
                content=seal(content) if key is not None else None,
                key=key,
            )
        )
        events += [
            ev.DatasetAliasMoved(dataset=name, alias=alias, version=str(uri.version))
            for alias in dict.fromkeys(aliases)
        ]
        return events

    reg._commit("dataset:" + uri.name, decide)
    with reg._core.view(probe=False) as view:
        found = data.version(view, uri.name, number)
    return reg._whole_dataset(found)


def free(view: View, name: str, version: str, aliases: Sequence[str] = ()) -> None:
    """Raise Conflict unless a new version may have this name, and its aliases theirs: they share one namespace."""
    pointing = data.aliases(view, name) if data.has_dataset(view, name) else {}
    taken = data.number_of(view, name, version) is not None
    rules.dataset_version_is_free(name, version, taken, version in pointing)
    for alias in aliases:
        rules.dataset_alias_is_free(
            name, alias, data.number_of(view, name, alias) is not None or alias == version
        )


def _excluded(path: str, exclude: Sequence[str]) -> bool:
    """Return whether *exclude* names a file: by its path, or by its name alone."""
    return path in exclude or path.rpartition("/")[2] in exclude


def set_alias(reg: Registry, ref: object, alias: str, target: object, reason: str) -> Dataset:
    """Point an alias of a dataset at one of its versions. See `Registry.set_alias`."""
    name = dataset_name(ref)
    good = names.check_version_name(alias, "dataset alias")
    said = reason_of(reason, required=False)
    if isinstance(target, DatasetVersion) or (isinstance(target, str) and "://" in target):
        wanted = dataset_version_uri(target)
        if wanted.name != name:
            raise InvalidURI(f"{wanted} is not a version of the dataset {shown(name)}.")
        version = str(wanted.version)
    else:
        version = names.check_version_name(target)

    def decide(view: View, seal: Sealer) -> list[Event]:
        pin_dataset(view, DatasetURI(name, version))
        meant = data.selected(view, name, version) or version
        rules.dataset_alias_is_free(name, good, data.number_of(view, name, good) is not None)
        if data.aliases(view, name).get(good) == meant:
            return []
        return [ev.DatasetAliasMoved(dataset=name, alias=good, version=meant, reason=seal.maybe(said))]

    reg._commit("dataset:" + name, decide)
    return reg.dataset(name)


def delete_alias(reg: Registry, ref: object, alias: str, reason: str) -> Dataset:
    """Make an alias of a dataset point at nothing. See `Registry.delete_alias`."""
    name = dataset_name(ref)
    good = names.check_version_name(alias, "dataset alias")
    said = reason_of(reason, required=False)

    def decide(view: View, seal: Sealer) -> list[Event]:
        dataset_exists(view, name)
        known = data.aliases(view, name)
        if good not in known:
            raise NotFound(
                f"The dataset {shown(name)} has no alias {shown(good)}.", nearest=nearest(good, known)
            )
        return [ev.DatasetAliasDeleted(dataset=name, alias=good, reason=seal.maybe(said))]

    reg._commit("dataset:" + name, decide)
    return reg.dataset(name)
