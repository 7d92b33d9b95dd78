"""Questions about datasets and datums, asked of the index as it was at one entry of the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain import stored
from modelhub_sdk.domain.entities import Dataset, DatasetVersion, Datum
from modelhub_sdk.domain.query import Order, Query
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.errors import InvalidDocument, shown
from modelhub_sdk.formats import codec, manifest
from modelhub_sdk.index import search
from modelhub_sdk.index.queries import View, all_values, field_values, names_in, seals_in, text_value
from modelhub_sdk.index.sql import parts

_DATUM_ALIASES = "datum"


def subject(name: str) -> str:
    """Return what keys a dataset in the index."""
    return "dataset:" + name


def has_dataset(view: View, name: str) -> bool:
    """Return whether the dataset exists."""
    return (
        view.sql.one("SELECT 1 FROM @dataset WHERE model = ? AND seq <= ?", subject(name), view.at)
        is not None
    )


def dataset_names(view: View) -> list[str]:
    """Return all names of datasets."""
    rows = view.sql.all("SELECT name FROM @dataset WHERE seq <= ? ORDER BY name", view.at)
    return names_in(rows, "the datasets")


def version_names(view: View, name: str) -> list[str]:
    """Return the names of a dataset's versions, oldest first."""
    rows = view.sql.all(
        "SELECT name FROM @datasetversion WHERE model = ? AND seq <= ? ORDER BY number",
        subject(name),
        view.at,
    )
    return names_in(rows, f"dataset://{name}/")


def number_of(view: View, name: str, version: str) -> int | None:
    """Return the number of the version with this name, None when there is none."""
    row = view.sql.one(
        "SELECT number FROM @datasetversion WHERE model = ? AND name = ? AND seq <= ?",
        subject(name),
        version,
        view.at,
    )
    return row[0] if row else None


def last_number(view: View, name: str) -> int:
    """Return the number of the newest version, 0 for none."""
    row = view.sql.one(
        "SELECT max(number) FROM @datasetversion WHERE model = ? AND seq <= ?", subject(name), view.at
    )
    return (row[0] if row else 0) or 0


def aliases(view: View, name: str) -> dict[str, str]:
    """Return alias -> name of the version."""
    facts = view.facts(subject(name), 0)
    return {n[6:]: codec.loads(value)["version"] for n, value in sorted(facts) if n.startswith("alias:")}


def datasets(
    view: View, query: Query, order: Order | None, limit: int, offset: int, text: str | None
) -> tuple[list[Dataset], int]:
    """Return a page of datasets and the number of all that match."""
    clause = search.where(query, "datasets", view.sql.dialect, view.at)
    clause.add("v.seq <= ?", view.at)
    if text:
        clause.add(*search.containing(view.sql.dialect, "v.name", view.at, text))
    rows, total = view.page(
        "SELECT v.name FROM @dataset v", "@dataset v", clause, order, "datasets", limit, offset
    )
    return [dataset(view, row[0]) for row in rows], total


def dataset(view: View, name: str) -> Dataset:
    """Return the dataset *name*, which exists."""
    facts = view.facts(subject(name), 0)
    born = view.sql.one("SELECT seq FROM @dataset WHERE model = ?", subject(name)) or (0,)
    changed = view.sql.one(
        "SELECT max(seq) FROM @event WHERE model = ? AND seq <= ?", subject(name), view.at
    ) or (0,)
    entries = view.entries([born[0], changed[0]])
    texts = view.texts([*seals_in(facts), entries[born[0]][1]])
    names = version_names(view, name)
    pointing = aliases(view, name)
    return Dataset(
        name=name,
        title=text_value(facts, "title", texts),
        description=text_value(facts, "description", texts),
        fields=field_values(facts, texts),
        tags=all_values(facts, "tag"),
        owner=text_value(facts, "owner", texts),
        projects=all_values(facts, "project"),
        created_at=entries[born[0]][0],
        created_by=texts.get(entries[born[0]][1]),
        modified_at=entries[changed[0]][0],
        seq=changed[0],
        versions=tuple(names),
        latest=pointing.get("latest") or (names[-1] if names else None),
        aliases=Frozen(pointing),
    )


def born(view: View, name: str, number: int) -> ev.DatasetVersionCreated:
    """Return the event that made a version, which exists."""
    row = view.sql.one(
        "SELECT e.doc FROM @datasetversion v JOIN @event e ON e.seq = v.seq AND e.n = v.n"
        " WHERE v.model = ? AND v.number = ?",
        subject(name),
        number,
    )
    event = codec.read_event(row[0] if row else "{}", f"version {number} of dataset://{name}")
    if not isinstance(event, ev.DatasetVersionCreated):
        bad = InvalidDocument(f"It is an event of another kind ({shown(event.kind)}).")
        raise codec.damaged_index(f"version {number} of dataset://{name}", bad)
    return event


def version(view: View, name: str, number: int) -> DatasetVersion:
    """Return a version, which exists; its files are empty where they stand in a document (see `born`)."""
    event = born(view, name, number)
    facts = view.facts(subject(name), number)
    row = view.sql.one(
        "SELECT v.seq, (SELECT max(e.seq) FROM @event e WHERE e.model = v.model AND e.number = v.number AND e.seq <= ?)"
        " FROM @datasetversion v WHERE v.model = ? AND v.number = ?",
        view.at,
        subject(name),
        number,
    ) or (0, 0)
    entry = view.entries([row[0]])[row[0]]
    texts = view.texts([*seals_in(facts), entry[1]])
    return DatasetVersion(
        uri=f"dataset://{name}/{event.version}",
        dataset=name,
        version=event.version,
        number=number,
        files=event.files,
        digest=event.manifest,
        size=event.size,
        tags=all_values(facts, "tag"),
        fields=field_values(facts, texts),
        based_on=event.base,
        created_at=entry[0],
        created_by=texts.get(entry[1]),
        run_id=event.run_id,
        aliases=tuple(sorted(alias for alias, at in aliases(view, name).items() if at == event.version)),
        seq=row[1] or row[0],
    )


def homes(view: View, digests: Iterable[str], besides: str) -> dict[str, str]:
    """Return digest -> URI of what a file of that digest belongs to in the registry.

    That is the newest dataset version, else the newest model version, else the newest datum that holds
    it, of those that the run *besides* has not made itself.
    """
    found: dict[str, str] = {}
    for part, marks in parts(sorted(set(digests))):
        some = f"IN ({marks}) AND {{t}}.seq <= ? AND ({{t}}.run_id IS NULL OR {{t}}.run_id <> ?)"
        bound = [*part, view.at, besides]
        for digest, id_ in view.sql.all(
            f"SELECT d.digest, d.id FROM @datum d WHERE d.digest {some.format(t='d')} ORDER BY d.seq, d.id",
            *bound,
        ):
            found[digest] = f"datum://{id_}"
        joined = "v ON v.model = f.model AND v.number = f.number WHERE f.digest " + some.format(t="v")
        for digest, model, number in view.sql.all(
            f"SELECT f.digest, v.model, v.number FROM @file f JOIN @version {joined} ORDER BY v.seq, v.n",
            *bound,
        ):
            found[digest] = f"model://{model}/v{number}"
        for digest, model, name in view.sql.all(
            f"SELECT f.digest, v.model, v.name FROM @file f JOIN @datasetversion {joined} ORDER BY v.seq, v.n",
            *bound,
        ):
            found[digest] = f"dataset://{model.removeprefix('dataset:')}/{name}"
    return found


def with_manifest(view: View, digest: str) -> list[tuple[str, int]]:
    """Return (dataset, number) of the versions that have exactly these files."""
    rows = view.sql.all(
        "SELECT model, number FROM @datasetversion WHERE manifest = ? AND seq <= ? ORDER BY seq, n",
        digest,
        view.at,
    )
    return [(model.removeprefix("dataset:"), number) for model, number in rows]


def all_holding(view: View, digest: str, document: Callable[[str], bytes]) -> list[tuple[str, int]]:
    """Return (dataset, number) of the versions with a file of this digest, those in documents too."""
    found = {
        (model.removeprefix("dataset:"), number)
        for model, number in view.sql.all(
            "SELECT f.model, f.number FROM @file f JOIN @datasetversion v ON v.model = f.model AND v.number = f.number"
            " WHERE f.digest = ? AND v.seq <= ?",
            digest,
            view.at,
        )
    }
    for name, number, where in documents(view):
        if any(file.digest == digest for file in manifest.decode(document(where))):
            found.add((name, number))
    return sorted(found)


def documents(view: View) -> list[tuple[str, int, str]]:
    """Return (dataset, number, document) of the versions whose files stand in a document."""
    return [
        (event.dataset, event.number, event.document)
        for event in view.events(ev.DatasetVersionCreated.kind)
        if isinstance(event, ev.DatasetVersionCreated) and event.document
    ]


def all_versions(view: View) -> list[tuple[str, int]]:
    """Return (dataset, number) of all versions."""
    rows = view.sql.all("SELECT model, number FROM @datasetversion WHERE seq <= ? ORDER BY seq, n", view.at)
    return [(model.removeprefix("dataset:"), number) for model, number in rows]


def made_by(view: View, run_id: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the URIs of the model versions, dataset versions and datums that a run made."""
    models = view.sql.all(
        "SELECT model, number FROM @version WHERE run_id = ? AND seq <= ? ORDER BY seq, n", run_id, view.at
    )
    data = view.sql.all(
        "SELECT model, name FROM @datasetversion WHERE run_id = ? AND seq <= ? ORDER BY seq, n",
        run_id,
        view.at,
    )
    single = view.sql.all(
        "SELECT id FROM @datum WHERE run_id = ? AND seq <= ? ORDER BY seq, id", run_id, view.at
    )
    return (
        tuple(f"model://{model}/v{number}" for model, number in models),
        tuple(f"dataset://{model.removeprefix('dataset:')}/{name}" for model, name in data),
        tuple(f"datum://{row[0]}" for row in single),
    )


# --- datums ---------------------------------------------------------------------------------------------


def datum_aliases(view: View) -> dict[str, str]:
    """Return alias -> id of a datum."""
    found = {n[6:]: value for n, value in view.facts(_DATUM_ALIASES, 0) if n.startswith("alias:")}
    return dict(zip(names_in(found.items(), "the aliases of datums"), found.values(), strict=True))


def datum_alias(view: View, alias: str) -> str | None:
    """Return the id that *alias* means, None when it means nothing."""
    row = view.sql.one(
        "SELECT value FROM @fact WHERE model = ? AND number = 0 AND name = ? AND since <= ? AND until > ?",
        _DATUM_ALIASES,
        "alias:" + alias,
        view.at,
        view.at,
    )
    return row[0] if row else None


def datum(view: View, id_: str) -> Datum | None:
    """Return the datum with this id, None when there is none."""
    row = view.sql.one(
        "SELECT d.name, d.size, d.digest, d.run_id, d.seq, e.doc FROM @datum d JOIN @event e"
        " ON e.seq = d.seq AND e.n = d.n WHERE d.id = ? AND d.seq <= ?",
        id_,
        view.at,
    )
    if row is None:
        return None
    entry = view.entries([row[4]])[row[4]]
    texts = view.texts([entry[1]])
    event = codec.read_event(row[5], f"datum://{id_}")
    noted = next((d for d in getattr(event, "datums", ()) if d.id == id_), None)
    try:
        file = stored.file(*row[:3])
    except InvalidDocument as error:
        raise codec.damaged_index(f"datum://{id_}", error) from None
    pointing = view.sql.all(
        "SELECT name FROM @fact WHERE model = ? AND number = 0 AND value = ? AND since <= ? AND until > ? ORDER BY name",
        _DATUM_ALIASES,
        id_,
        view.at,
        view.at,
    )
    return Datum(
        id=id_,
        name=file.path,
        size=file.size,
        digest=file.digest,
        properties=Frozen() if noted is None else noted.fields,
        tags=all_values(view.facts("datum:" + id_, 0), "tag"),
        aliases=tuple(name[6:] for (name,) in pointing),
        run_id=row[3],
        created_at=entry[0],
        created_by=texts.get(entry[1]),
        seq=row[4],
    )


def datum_of(view: View, digest: str) -> Datum | None:
    """Return the newest datum that holds these bytes, None when there is none."""
    row = view.sql.one(
        "SELECT id FROM @datum WHERE digest = ? AND seq <= ? ORDER BY seq DESC, id LIMIT 1", digest, view.at
    )
    return datum(view, row[0]) if row else None


def selected(view: View, name: str, version: str) -> str | None:
    """Return the name of the version that a name or an alias means; None when it means nothing.

    ``latest`` is the alias of that name, else the newest version.
    """
    pointing = aliases(view, name).get(version)
    if pointing is not None:
        return pointing
    if number_of(view, name, version) is not None:
        return version
    names = version_names(view, name) if version == "latest" else []
    return names[-1] if names else None
