"""The reads about runs and lineage: which run is alive, what a thing comes from, what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias

from attrs import evolve

from modelhub_sdk import surroundings
from modelhub_sdk.core import Core
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain import names, rules
from modelhub_sdk.domain.entities import Dataset, DatasetVersion, Datum, Model, ModelVersion, Resolved, Use
from modelhub_sdk.domain.lineage import (
    Decision,
    Edge,
    LineageGraph,
    LineageRecord,
    RunInput,
    RunRecord,
    elsewhere,
)
from modelhub_sdk.domain.uri import DatumURI, Number
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.errors import InvalidName, InvalidQuery, ModelHubError, NotFound, nearest, shown
from modelhub_sdk.formats import codec
from modelhub_sdk.index import data, graph, runs
from modelhub_sdk.index.queries import NOW, View
from modelhub_sdk.references import Ref, any_uri, dataset_uri, dataset_version_uri, pin, pin_dataset
from modelhub_sdk.resolver import found_datum
from modelhub_sdk.uses import inbox, waiting

SILENCE = timedelta(minutes=15)
"""A run of which nothing was heard for this long counts as interrupted."""

LineageRef: TypeAlias = "Ref | Dataset | DatasetVersion | Datum | RunRecord"
"""What lineage can be asked of: whatever has a URI, ``run:<id>``, ``sha256:<digest>`` of a file, ``code:<commit>``."""


# --- runs -------------------------------------------------------------------------------------------------


def run_id_of(view: View, ref: object) -> str:
    """Return the id of the run that *ref* names: a record, an id, ``run:<id>``, or its number.

    Raises:
        NotFound: there is no such run.
    """
    if isinstance(ref, RunRecord):
        ref = ref.id
    if isinstance(ref, int) and not isinstance(ref, bool):
        found = runs.by_number(view, ref) if 0 < ref < 2**31 else None
        if found is None:
            raise NotFound(f"There is no run number {shown(ref)}.", hint="reg.runs() lists them.")
        return found
    wanted = names.check_text(ref, "run", 300).removeprefix("run:")
    if not runs.attempts(view, wanted):
        near = nearest(wanted, runs.run_names(view))
        raise NotFound(f"There is no run {shown(wanted)}.", hint="reg.runs() lists them.", nearest=near)
    return wanted


def interrupted(core: Core, view: View) -> Mapping[str, int]:
    """Return subject -> attempt of the runs that have not ended and of which nothing is heard any more.

    That is: no heartbeat for `SILENCE`, or its process is gone from this very machine.
    """
    if view.at != NOW:
        return Frozen()
    alive = runs.unfinished(view)
    now = core.clock()
    found: dict[str, int] = {}
    doubtful = []
    for one in alive:
        if one.process and one.host == core.host and surroundings.is_gone(one.process):
            found[one.subject] = one.attempt
        elif now - one.started_at > SILENCE:
            doubtful.append(one)
    if doubtful:
        heard = heartbeats(core)
        for one in doubtful:
            if now - heard.get(one.id, one.started_at) > SILENCE:
                found[one.subject] = one.attempt
    return found


def heartbeats(core: Core) -> dict[str, datetime]:
    """Return when each run was last heard of, by the notes in the inbox."""
    found: dict[str, datetime] = {}
    for raw in notes(core, "heartbeat"):
        try:
            run, at = raw["run"], codec.parse_time(raw["at"])
        except (KeyError, TypeError, ValueError, ModelHubError):
            continue
        if not isinstance(run, str):
            continue
        found[run] = max(at, found.get(run, at))
    return found


def notes(core: Core, kind: str) -> Iterator[Mapping[str, Any]]:
    """Yield the notes of one kind that wait in the inbox."""
    for _, raw in waiting(core):
        if raw["kind"] == kind:
            yield raw


def run(core: Core, at: int, ref: object) -> RunRecord:
    """Return a run. See `RegistryView.run`."""
    with core.view(at) as view:
        found = run_id_of(view, ref)
        return runs.run(view, found, lost=interrupted(core, view), document=core.document)


def metrics(core: Core, at: int, ref: object) -> dict[str, list[dict[str, Any]]]:
    """Return the series of a run. See `RegistryView.metrics`."""
    with core.view(at) as view:
        documents = runs.series(view, run_id_of(view, ref))
    found: dict[str, list[dict[str, Any]]] = {}
    for digest in documents:
        series = codec.read_document(core.document(digest), "the metrics of a run", _series)
        for key, points in series.items():
            found.setdefault(key, []).extend(points)
    return found


def _series(raw: Any) -> dict[str, list[dict[str, Any]]]:
    return {
        key: [
            {"step": step, "at": codec.parse_time(stamp), "value": _value(value)}
            for step, stamp, value in points
        ]
        for key, points in raw.items()
    }


def _value(raw: Any) -> Any:
    return codec.values({"value": raw})["value"]


# --- graphs -----------------------------------------------------------------------------------------------


def node_of(core: Core, view: View, ref: object) -> str:
    """Return the node of the graph that *ref* names, pinned.

    Raises:
        NotFound: there is no such thing.
        InvalidName: it is of another kind.
    """
    if isinstance(ref, (RunRecord,)) or (isinstance(ref, str) and ref.startswith("run:")):
        return "run:" + run_id_of(view, ref)
    if isinstance(ref, Resolved):
        ref = ref.version
    if isinstance(ref, Datum):
        return ref.uri
    if isinstance(ref, str) and ref.startswith("datum://"):
        return found_datum(view, DatumURI.parse(ref)).uri
    if isinstance(ref, (Dataset, DatasetVersion)) or (isinstance(ref, str) and ref.startswith("dataset://")):
        uri = dataset_uri(ref)
        number = pin_dataset(view, uri)
        return data.version(view, uri.name, number).uri
    if isinstance(ref, str) and ref.startswith(("sha256:", "file:", "code:")):
        node = "file:" + ref if ref.startswith("sha256:") else ref
        if not graph.exists(view, node):
            raise NotFound(f"No run has read, written or run {shown(ref)}.")
        return node
    if not isinstance(ref, (str, Model, ModelVersion)) and not hasattr(ref, "uri"):
        raise InvalidName(f"{shown(ref)} has no lineage.", hint="Pass a URI, or a version, a datum, a run.")
    model = any_uri(ref)  # type: ignore[arg-type]
    if model.selector is None:
        latest = view.latest(model.name) or view.last_number(model.name)
        rules.model_exists(view, model.name)
        if not latest:
            raise NotFound(f"{shown(model.name)} has no versions yet.")
        return f"model://{model.name}/v{latest}"
    number = pin(view, model)
    rules.version_exists(view, model.name, number)
    return f"model://{model.name}/v{number}"


def walk(
    core: Core, at: int, ref: object, direction: Literal["up", "down"], depth: int | None
) -> LineageGraph:
    """Return what a thing comes from, or what came of it. See `RegistryView.upstream`."""
    if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 0):
        raise InvalidQuery(f"depth={shown(depth)} is no number of steps.", hint="Pass 1, 2, 3 …, or None.")
    with core.view(at) as view:
        waiting = list(inbox(core)) if direction == "down" and at == NOW else []
        found = graph.graph(
            view, node_of(core, view, ref), direction, depth, interrupted(core, view), waiting
        )
        return found if direction == "down" else _with_past(view, found, depth)


def _with_past(view: View, found: LineageGraph, depth: int | None = None) -> LineageGraph:
    """Add, of versions that came from other registries, what they came from there."""
    arrived = [(edge.source, edge.target) for edge in found.edges if edge.source.startswith("origin:")]
    for source, target in arrived:
        uri = any_uri(target)
        past = _past(view, uri.name, uri.selector.number if isinstance(uri.selector, Number) else 0)
        if past is None:
            continue
        registry = source.removeprefix("origin:").partition("/")[0]

        def there(node: str, registry: str = registry) -> str:
            return elsewhere(registry, node)

        nodes = []
        for node in past.graph.nodes:
            detail = node.detail
            if there(node.id) != node.id:
                detail = f"{detail} · in registry {registry[:8]}" if detail else f"in registry {registry[:8]}"
            nodes.append(evolve(node, id=there(node.id), detail=detail))
        edges = tuple(Edge(there(edge.source), there(edge.target), edge.label) for edge in past.graph.edges)
        more = LineageGraph(source, tuple(nodes), edges, past.graph.cut)
        found = graph.united(found.root, found, more)
    return found if depth is None or not arrived else graph.near(found, depth)


def _past(view: View, model: str, number: int) -> LineageRecord | None:
    """Return the lineage that a version had in the registry where it comes from, unless it was erased."""
    seal = view.registered(model, number).history if view.state(model, number) else None
    text = view.texts([seal]).get(seal) if seal else None
    try:
        return None if text is None else codec.structure_lineage(codec.loads(text))
    except (KeyError, TypeError, ValueError):  # by a strange writer
        return None


def record(core: Core, at: int, ref: object, uses: tuple[Use, ...]) -> LineageRecord:
    """Return everything about where one thing comes from. See `RegistryView.lineage`."""
    with core.view(at) as view:
        lost = interrupted(core, view)
        node = node_of(core, view, ref)
        waiting = list(inbox(core)) if at == NOW else []
        up = _with_past(view, graph.graph(view, node, "up", None, lost))
        down = graph.graph(view, node, "down", None, lost, waiting)
        found = LineageRecord(
            subject=node,
            datasets=tuple(n.id for n in up.nodes if n.kind == "dataset" and n.id != node),
            parents=tuple(dict.fromkeys(edge.source for edge in up.edges if edge.target == node)),
            used_by=uses,
            graph=graph.united(node, up, down),
        )
        run_id = _maker(view, node)
        version = _version(view, node)
        if run_id is not None and runs.attempts(view, run_id):
            made = runs.run(view, run_id, lost=lost, document=core.document)
            found = evolve(_made_as(found, made, made), params=made.params, metrics=made.metrics)
        if version is not None:
            mine = tuple(RunInput(uri=uri) for uri in version.inputs)
            found = evolve(
                found,
                params=Frozen({**found.params, **version.params}),
                metrics=Frozen({**found.metrics, **version.metrics}),
                inputs=found.inputs or mine,
                approvals=_decisions(view, version),
                origin=version.origin,
            )
            past = _past(view, version.model, version.number) if version.origin else None
            if past is not None:
                found = evolve(_made_as(found, past.run, past), datasets=past.datasets, history=past.history)
        return found


def _made_as(found: LineageRecord, run: RunRecord | None, how: RunRecord | LineageRecord) -> LineageRecord:
    """Return *found* with the run, code, environment, inputs and outputs of how it was made."""
    return evolve(
        found,
        run=run,
        code=how.code,
        environment=how.environment,
        inputs=how.inputs,
        outputs=how.outputs,
    )


def _version(view: View, node: str) -> ModelVersion | None:
    if not node.startswith("model://"):
        return None
    uri = any_uri(node)
    return view.version(uri.name, uri.selector.number) if isinstance(uri.selector, Number) else None


def _maker(view: View, node: str) -> str | None:
    """Return the id of the run that made what a node stands for; of a run, itself."""
    if node.startswith("run:"):
        return node[4:]
    if node.startswith("dataset://"):
        uri = dataset_version_uri(node)
        return data.version(view, uri.name, pin_dataset(view, uri)).run_id
    if node.startswith("datum://"):
        datum = data.datum(view, node.removeprefix("datum://"))
        return datum.run_id if datum else None
    version = _version(view, node)
    return version.run_id if version else None


_STATUSES: dict[str, str] = {
    ev.VersionApproved.kind: "approved",
    ev.VersionRejected.kind: "rejected",
    ev.VersionReopened.kind: "pending",
}


def _decisions(view: View, version: ModelVersion) -> tuple[Decision, ...]:
    """Return every decision about a version, oldest first."""
    found = []
    for seq, kind, raw in view.texts_of(version.model, version.number, tuple(_STATUSES)):
        at, actor, _via = view.entries([seq])[seq]
        texts = view.texts([actor, raw.get("reason")])
        found.append(Decision(_STATUSES[kind], at, texts.get(actor), texts.get(raw.get("reason") or "")))
    return tuple(found)
