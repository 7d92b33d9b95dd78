"""The lineage graph: what went into what, walked along the edges of the index."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Literal

from attrs import frozen

from modelhub_sdk.domain.entities import Use, one_line
from modelhub_sdk.domain.lineage import Edge, LineageGraph, Node
from modelhub_sdk.domain.uri import DatasetURI, Latest, ModelURI, Named, Number, node_of, parse_uri
from modelhub_sdk.errors import ModelHubError
from modelhub_sdk.index import data, runs
from modelhub_sdk.index.queries import View

MAX_NODES = 2000
"""Nodes in one graph; beyond them it says that it was cut."""

Direction = Literal["up", "down"]
_Row = tuple[str, str, str, int]


@frozen
class _Walk:
    nodes: dict[str, int]
    edges: dict[tuple[str, str], str]
    cut: bool


def graph(
    view: View,
    root: str,
    direction: Direction,
    depth: int | None,
    lost: Mapping[str, int],
    waiting: Iterable[Use] = (),
) -> LineageGraph:
    """Return what *root* comes from (``up``), or what came of it (``down``), at most *depth* steps away.

    *lost* are the runs that count as interrupted, *waiting* the uses that are still in the inbox.
    Cycles, which only a strange writer can make, end: every node is visited once.
    """
    walk = _walked(view, root, direction, depth)
    _tidied(walk, root, direction)
    nodes = {one: _node(view, one, walk, lost) for one in walk.nodes}
    edges = {
        pair: _telling(label, nodes[pair[0]], nodes[pair[1]])
        for pair, label in walk.edges.items()
        if pair[0] in nodes and pair[1] in nodes
    }
    if direction == "down":
        for version in [one for one in walk.nodes if one.startswith("model://")]:
            _add_uses(view, version, nodes, edges, waiting)
    return LineageGraph(
        root=root,
        nodes=tuple(nodes.values()),
        edges=tuple(Edge(source, target, label or None) for (source, target), label in edges.items()),
        cut=walk.cut,
    )


def united(root: str, *parts: LineageGraph) -> LineageGraph:
    """Return several graphs as one."""
    return LineageGraph(
        root=root,
        nodes=tuple({node.id: node for part in parts for node in part.nodes}.values()),
        edges=tuple({(edge.source, edge.target): edge for part in parts for edge in part.edges}.values()),
        cut=any(part.cut for part in parts),
    )


def near(found: LineageGraph, depth: int) -> LineageGraph:
    """Return what of a graph of ancestors is at most *depth* steps from its root."""
    into: dict[str, list[str]] = defaultdict(list)
    for edge in found.edges:
        into[edge.target].append(edge.source)
    kept, last = {found.root}, {found.root}
    for _ in range(depth):
        last = {source for node in last for source in into[node]} - kept
        kept |= last
    return LineageGraph(
        root=found.root,
        nodes=tuple(node for node in found.nodes if node.id in kept),
        edges=tuple(edge for edge in found.edges if edge.source in kept and edge.target in kept),
        cut=found.cut or any(source not in kept for node in kept for source in into[node]),
    )


def exists(view: View, node: str) -> bool:
    """Return whether anything is known of a node that is a file, a run or a commit."""
    row = view.sql.one(
        "SELECT 1 FROM @edge WHERE (source = ? OR target = ?) AND seq <= ?", node, node, view.at
    )
    return row is not None


def _walked(view: View, root: str, direction: Direction, depth: int | None) -> _Walk:
    seen = {root: 0}
    edges: dict[tuple[str, str], str] = {}
    queue = deque([root])
    cut = False
    while queue:
        here = queue.popleft()
        rows = _edges(view, here, direction)
        if depth is not None and seen[here] >= depth:
            cut = cut or any((s if direction == "up" else t) not in seen for s, t, _, _ in rows)
            continue
        for source, target, label, _seq in rows:
            there = source if direction == "up" else target
            if there not in seen:
                if len(seen) >= MAX_NODES:
                    cut = True
                    continue
                seen[there] = seen[here] + 1
                queue.append(there)
            edges.setdefault((source, target), label)
    return _Walk(seen, edges, cut)


def _edges(view: View, here: str, direction: Direction) -> list[_Row]:
    """Return the edges into (or out of) a node; moving names are what they meant when they were written down."""
    mine, other = ("target", "source") if direction == "up" else ("source", "target")
    rows: list[_Row] = [
        (row[0], row[1], row[2], row[3])
        for row in view.sql.all(
            f"SELECT source, target, label, seq FROM @edge WHERE {mine} = ? AND seq <= ? ORDER BY seq, {other}",
            here,
            view.at,
        )
    ]
    if direction == "down":
        for moving in _names_of(view, here):
            rows += [
                (here, row[1], row[2], row[3])
                for row in view.sql.all(
                    "SELECT source, target, label, seq FROM @edge WHERE source = ? AND seq <= ? ORDER BY seq, target",
                    moving,
                    view.at,
                )
                if _meant(view, moving, row[3]) == here
            ]
        return rows
    return [(_meant(view, source, seq), target, label, seq) for source, target, label, seq in rows]


def _meant(view: View, uri: str, seq: int) -> str:
    """Return what *uri* meant at entry *seq*: a version by its number or name."""
    if not uri.startswith(("model://", "dataset://")):
        return uri
    try:
        parsed = parse_uri(uri)
    except ModelHubError:
        return uri
    then = View(view.sql, seq)
    if isinstance(parsed, ModelURI):
        number = None
        if isinstance(parsed.selector, Latest):
            number = then.latest(parsed.name)
        elif isinstance(parsed.selector, Named) and then.has_model(parsed.name):
            alias = then.alias(parsed.name, parsed.selector.alias)
            number = alias.number if alias else None
        return f"model://{parsed.name}/v{number}" if number else node_of(str(parsed))
    if isinstance(parsed, DatasetURI) and parsed.version is not None:
        name = data.selected(then, parsed.name, parsed.version)
        return f"dataset://{parsed.name}/{name}" if name else node_of(uri)
    return uri


def _names_of(view: View, node: str) -> list[str]:
    """Return the moving names under which a version may have been written down as an input."""
    if not node.startswith(("model://", "dataset://")):
        return []
    prefix = node.rpartition("/")[0] + "/"
    rows = view.sql.all(
        "SELECT DISTINCT source FROM @edge WHERE source >= ? AND source < ? AND source <> ?",
        prefix,
        prefix[:-1] + "0",  # the character after the slash
        node,
    )
    names = []
    for (source,) in rows:
        try:
            parsed = parse_uri(source)
        except ModelHubError:
            continue
        if (isinstance(parsed, ModelURI) and not isinstance(parsed.selector, Number)) or (
            isinstance(parsed, DatasetURI) and not data.number_of(view, parsed.name, parsed.version or "")
        ):
            names.append(source)
    return names


def _tidied(walk: _Walk, root: str, direction: Direction) -> None:
    """Drop the plain files that tell nothing: outputs that nobody read, and copies of what a version names."""
    outgoing: dict[str, list[str]] = defaultdict(list)
    incoming: dict[str, list[str]] = defaultdict(list)
    for source, target in walk.edges:
        outgoing[source].append(target)
        incoming[target].append(source)
    for node in [one for one in walk.nodes if one.startswith("file:") and one != root]:
        read = bool(outgoing[node])
        if not read and direction == "down" and incoming[node]:
            del walk.nodes[node]
    for pair in [pair for pair in walk.edges if pair[0] not in walk.nodes or pair[1] not in walk.nodes]:
        del walk.edges[pair]


def _telling(label: str, source: Node, target: Node) -> str:
    """Return the label of an edge where it says more than the nodes at its ends."""
    return "" if source.kind == "code" or label in (source.label, target.label) else label


def _node(view: View, uri: str, walk: _Walk, lost: Mapping[str, int]) -> Node:
    kind, _, rest = uri.partition(":")
    if kind == "origin":
        registry, _, there = rest.partition("/")
        label = there.removeprefix("model://")
        return Node(uri, "model", one_line(label), detail=one_line(f"in registry {registry[:8]}"))
    if kind == "run":
        return _run_node(view, uri, rest, lost)
    if kind == "model":
        return _model_node(view, uri)
    if kind == "dataset":
        return _dataset_node(view, uri)
    if kind == "datum":
        found = data.datum(view, rest.removeprefix("//"))
        label = found.name if found else rest.removeprefix("//")
        aliases = ", ".join(found.aliases) if found else ""
        return Node(uri, "datum", one_line(label), detail=aliases or (found and _size(found.size)) or None)
    names = sorted(
        {label for (source, target), label in walk.edges.items() if uri in (source, target) and label}
    )
    if kind == "code":
        return Node(uri, "code", rest.removeprefix("sha256:"), detail=one_line(names[0]) if names else None)
    return Node(uri, "file", one_line(names[0]) if names else rest[:20], detail=rest[:17] if rest else None)


def _run_node(view: View, uri: str, run_id: str, lost: Mapping[str, int]) -> Node:
    if not runs.attempts(view, run_id):
        return Node(uri, "run", one_line(run_id[:40]), detail="not recorded here")
    run = runs.run(view, run_id, lost=lost)
    detail = f"{run.started_at:%Y-%m-%d %H:%M}"
    if run.user:
        detail += f" · {run.user}"
    return Node(uri, "run", one_line(f"#{run.number} {run.name}"), run.status, one_line(detail))


def _model_node(view: View, uri: str) -> Node:
    try:
        parsed = parse_uri(uri)
    except ModelHubError:
        return Node(uri, "model", one_line(uri))
    number = (
        parsed.selector.number if isinstance(parsed, ModelURI) and isinstance(parsed.selector, Number) else 0
    )
    state = view.state(parsed.name, number) if isinstance(parsed, ModelURI) and number else None
    label = uri.removeprefix("model://").rstrip("/")
    if state is None:
        return Node(uri, "model", one_line(label), detail="not in this registry")
    status = "archived" if state.archived else "purged" if state.purged else state.status
    version = view.version(parsed.name, number)  # type: ignore[union-attr]
    names = ", ".join(version.aliases) if version else ""
    return Node(uri, "model", label, status, names or (_size(version.size) if version else None))


def _dataset_node(view: View, uri: str) -> Node:
    name, _, version = uri.removeprefix("dataset://").partition("/")
    label = one_line(f"{name}/{version}".rstrip("/"))
    number = data.number_of(view, name, version)
    if number is None:
        return Node(uri, "dataset", label, detail="not in this registry")
    found = data.version(view, name, number)
    return Node(uri, "dataset", label, detail=", ".join(found.aliases) or _size(found.size))


def _add_uses(
    view: View,
    version: str,
    nodes: dict[str, Node],
    edges: dict[tuple[str, str], str],
    waiting: Iterable[Use],
) -> None:
    """Add who resolved a version: the run, or person and machine, counted."""
    name, _, number = version.removeprefix("model://").partition("/v")
    if not number.isdigit():
        return
    known = {use.id: use for use in view.uses(name, int(number))}
    known |= {use.id: use for use in waiting if use.uri == version and use.id not in known}
    groups: dict[tuple[str, str], list[Use]] = defaultdict(list)
    for use in known.values():
        if use.run_id is not None and ("run:" + use.run_id in nodes or runs.attempts(view, use.run_id)):
            node = "run:" + use.run_id
            if node not in nodes:
                nodes[node] = _run_node(view, node, use.run_id, {})
            edges.setdefault((version, node), "")
        else:
            groups[use.actor or "(redacted)", use.host or "?"].append(use)
    for (actor, host), uses in groups.items():
        node = f"use:{actor}@{host}"
        times = f"{len(uses)} times, last" if len(uses) > 1 else "once,"
        last = max(use.at for use in uses)
        nodes.setdefault(
            node, Node(node, "use", one_line(f"{actor} on {host}"), detail=f"{times} {last:%Y-%m-%d %H:%M}")
        )
        edges.setdefault((version, node), "")


def _size(size: int) -> str:
    amount, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
