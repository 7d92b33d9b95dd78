"""A lineage graph -> Mermaid, a picture, a tree in plain text, a file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modelhub_sdk.domain.lineage import Edge, LineageGraph, Node
from modelhub_sdk.errors import InvalidName, StoreUnavailable, shown
from modelhub_sdk.views import tables
from modelhub_sdk.views import text as words

if TYPE_CHECKING:
    from modelhub_sdk.views.picture import Scene

__all__ = ["html", "mermaid", "save", "svg", "text"]

_NODES, _EDGES = 400, 2_000  # in a picture: more than anybody can look at
_MERMAID_NODES, _MERMAID_EDGES, _MERMAID_TEXT = 400, 500, 50_000  # beyond, Mermaid refuses unless configured
_LINES, _INDENT = 1_000, 90  # of a tree in plain text: what is deeper begins at the left again


# --- What is shown ---------------------------------------------------------------------------------


def _sound(graph: LineageGraph) -> tuple[dict[str, Node], dict[tuple[str, str], str | None]]:
    """Return the nodes by id, and one edge for each two of them that have any: all its labels in one."""
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        nodes.setdefault(node.id, node)
    labels: dict[tuple[str, str], dict[str, None]] = {}
    for edge in graph.edges:
        if edge.source in nodes and edge.target in nodes:
            said = labels.setdefault((edge.source, edge.target), {})
            if edge.label:
                said[edge.label] = None
    return nodes, {ends: ", ".join(said) or None for ends, said in labels.items()}


def _scene(graph: LineageGraph, nodes: int, edges: int) -> Scene:
    """Return what is drawn: so many *nodes* at most, those nearest to the root, and notes on the rest."""
    from modelhub_sdk.views.picture import Scene

    known, links = _sound(graph)
    kept = dict.fromkeys(list(_outwards(graph.root, known, links))[:nodes]) if len(known) > nodes else known
    inside = [Edge(*ends, label) for ends, label in links.items() if ends[0] in kept and ends[1] in kept]
    notes = []
    if hidden := len(known) - len(kept):
        notes.append(f"{words.count(hidden, 'more node')} not shown")
    if hidden := len(inside[edges:]):
        notes.append(f"{words.count(hidden, 'more line')} not shown")
    if not known:
        notes.append("Nothing is known.")
    if graph.cut:
        notes.append("The lineage goes on beyond what is shown.")
    return Scene(graph.root, [node for name, node in known.items() if name in kept], inside[:edges], notes)


def _outwards(root: str, nodes: Iterable[str], links: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the nodes by their distance from the *root*, whatever the direction, then the rest."""
    near: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in links:
        near[source].append(target)
        near[target].append(source)
    reached = dict.fromkeys([root] if root in near else [])
    queue = list(reached)
    for name in queue:  # grows while it is read
        fresh = [other for other in dict.fromkeys(near[name]) if other not in reached]
        reached.update(dict.fromkeys(fresh))
        queue += fresh
    yield from queue
    yield from (name for name in near if name not in reached)


# --- Pictures ----------------------------------------------------------------------------------------


def svg(graph: LineageGraph) -> str:
    """Return the picture of *graph*: an SVG document, time from left to right.

    Of more than 400 nodes those nearest to the root are shown, and it says how many are left out.
    """
    from modelhub_sdk.views import picture

    return picture.draw(_scene(graph, _NODES, _EDGES))


def html(graph: LineageGraph) -> str:
    """Return the picture of *graph* as a piece of HTML that scrolls where it is too wide."""
    # Notebooks shrink pictures to the width of the page: a long lineage would become illegible.
    picture = svg(graph).replace("<svg ", '<svg style="display:block;max-width:none" ', 1)
    return f'<div class="mhg-frame" style="overflow:auto;max-width:100%;margin:.5em 0">{picture}</div>'


# --- Mermaid -----------------------------------------------------------------------------------------

_SHAPES = {
    "model": ("[", "]"),
    "dataset": ("[(", ")]"),
    "datum": ("[[", "]]"),
    "file": ("[[", "]]"),
    "run": ("([", "])"),
    "code": ("{{", "}}"),
    "use": (">", "]"),
}
_LOOKS = {
    # The text's colour is set with the background's: legible on light and on dark pages.
    "model": "fill:#ffffff,stroke:#48566b,color:#1c2430",
    "dataset": "fill:#e2f4f2,stroke:#0f7670,color:#1c2430",
    "datum": "fill:#f4f5f8,stroke:#5d6b80,color:#1c2430",
    "file": "fill:#f4f5f8,stroke:#5d6b80,color:#1c2430",
    "run": "fill:#edf0fd,stroke:#4557c4,color:#1c2430",
    "code": "fill:#f5effc,stroke:#7a4fb5,color:#1c2430",
    "use": "fill:#fdf0f6,stroke:#ad3f78,color:#1c2430",
    "good": "fill:#e3f5ea,stroke:#12733f,color:#12733f",
    "bad": "fill:#fdecea,stroke:#b3261e,color:#b3261e",
    "wait": "fill:#fdf3d8,stroke:#8a5a00,color:#8a5a00",
    "root": "stroke-width:4px",
}
_PLAIN = frozenset(" -_,./+=()")


def mermaid(graph: LineageGraph) -> str:
    """Return *graph* as Mermaid text, a ``flowchart LR`` within the size that Mermaid draws."""
    nodes = _MERMAID_NODES
    while True:
        scene = _scene(graph, nodes, _MERMAID_EDGES)
        drawn = _mermaid(scene)
        if len(drawn) <= _MERMAID_TEXT or nodes < 2:
            return drawn
        nodes = min(nodes, len(scene.nodes)) * 3 // 4


def _mermaid(scene: Scene) -> str:
    from modelhub_sdk.views.picture import called, standing

    ids = {node.id: f"n{place}" for place, node in enumerate(scene.nodes)}
    lines = ["flowchart LR"]
    classes: dict[str, list[str]] = {}
    for node in scene.nodes:
        opening, closing = _SHAPES[node.kind]
        second = " · ".join(part for part in (node.status, node.detail) if part)
        told = _quoted(called(node), 80) + (f"<br/>{_quoted(second, 80)}" if second else "")
        lines.append(f'  {ids[node.id]}{opening}"{told}"{closing}')
        looks = [node.kind, standing(node.status), "root" if node.id == scene.root else None]
        for look in looks:
            if look:
                classes.setdefault(look, []).append(ids[node.id])
    for edge in scene.edges:
        label = f'|"{_quoted(edge.label, 60)}"|' if edge.label else ""
        lines.append(f"  {ids[edge.source]} -->{label} {ids[edge.target]}")
    for place, note in enumerate(scene.notes):
        lines.append(f'  more{place}["{_quoted(note, 80)}"]')
    for look in _LOOKS:
        if look in classes:
            lines.append(f"  classDef {look} {_LOOKS[look]}")
            lines.append(f"  class {','.join(classes[look])} {look}")
    return "\n".join(lines) + "\n"


def _quoted(told: str, limit: int) -> str:
    """Return text for a place in quotes, in which there is nothing that Mermaid would read as its own."""
    cleaned = words.clean(told[: 2 * limit])
    if len(cleaned) > limit:
        cleaned = cleaned[: limit - 1] + "…"
    quoted = "".join(c if c.isalnum() or c in _PLAIN or c > "\x7f" else f"#{ord(c)};" for c in cleaned)
    quoted = re.sub(r"\.(?!\w)", "#46;", quoted)  # "1. " would begin a list
    return quoted.replace("#92;n", "#92;#8288;n")  # else a line break, however it is written


# --- A tree in plain text ------------------------------------------------------------------------------


def text(graph: LineageGraph) -> str:
    """Return *graph* as a tree from its root: what it comes from, what came of it, and what stands beside.

    A node that is reached again is named again, without what is below it.
    """
    nodes, links = _sound(graph)
    back: dict[str, list[tuple[str, str | None]]] = {}
    ahead: dict[str, list[tuple[str, str | None]]] = {}
    for (source, target), label in links.items():
        back.setdefault(target, []).append((source, label))
        ahead.setdefault(source, []).append((target, label))
    lines = [_told(nodes[graph.root]) if graph.root in nodes else words.clean(graph.root)]
    seen = {graph.root}
    for title, next_to in (("comes from", back), ("went into", ahead)):
        if graph.root in next_to:
            lines.append(title)
            lines += _branches(graph.root, nodes, next_to, seen)
    if rest := [node for name, node in nodes.items() if name not in seen]:
        lines.append("beside them")
        lines += [f"  {_told(node)}" for node in rest]
    if hidden := max(0, len(lines) - _LINES):
        lines[_LINES:] = [f"… {words.count(hidden, 'more line')}"]
    if graph.cut:
        lines.append("… and more, beyond what was asked for")
    return "\n".join(lines)


def _branches(
    root: str,
    nodes: Mapping[str, Node],
    next_to: Mapping[str, Sequence[tuple[str, str | None]]],
    seen: set[str],
) -> Iterator[str]:
    def entries(name: str, indent: str) -> list[tuple[str, str | None, str, bool]]:
        near = next_to.get(name, ())
        return [(other, label, indent, place == len(near) - 1) for place, (other, label) in enumerate(near)][
            ::-1
        ]

    waiting = entries(root, "")
    while waiting:
        name, label, indent, last = waiting.pop()
        again = name in seen
        told = _told(nodes[name], brief=again) + (f"  as {words.cell(label)}" if label else "")
        yield f"{indent}{'└─ ' if last else '├─ '}{told}" + ("  (see above)" if again else "")
        if not again:
            seen.add(name)
            waiting += entries(name, (indent + ("   " if last else "│  "))[-_INDENT:])


def _told(node: Node, *, brief: bool = False) -> str:
    from modelhub_sdk.views.picture import KINDS, called

    name = f"{KINDS[node.kind][0]} {words.cell(called(node), limit=80)}"
    facts = [] if brief else [words.cell(fact, limit=80) for fact in (node.status, node.detail) if fact]
    return "  ".join([name, " · ".join(facts)]) if facts else name


# --- Files -----------------------------------------------------------------------------------------------


def save(graph: LineageGraph, path: str | os.PathLike[str]) -> None:
    """Write *graph* to *path*: ``.svg``, ``.mmd``, ``.html`` or ``.json`` by its ending. All or nothing.

    Raises:
        InvalidName: another ending.
        StoreUnavailable: the disk refused.
    """
    target = Path(path)
    writer = _WRITERS.get(target.suffix.lower())
    if writer is None:
        raise InvalidName(
            f"Cannot tell a format from {shown(target.name)}.",
            hint="End it with .svg, .mmd (Mermaid), .html or .json.",
        )
    # What is no Unicode (a file's name from the disk) is escaped everywhere but in JSON.
    content = writer(graph).encode("utf-8", "backslashreplace")
    try:
        tables._write(Path(os.path.realpath(target)), content)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise StoreUnavailable(
            f"Could not write {shown(str(target))}: {reason}.",
            hint="Nothing was written; choose another place.",
        ) from error


def _page(graph: LineageGraph) -> str:
    from modelhub_sdk.views.html import tag

    title = tag("title", f"Lineage of {graph.root}")
    return f'<!doctype html>\n<html lang="en"><meta charset="utf-8">{title}{html(graph)}</html>\n'


def _json(graph: LineageGraph) -> str:
    return json.dumps(tables.plain(graph), indent=2, ensure_ascii=False) + "\n"


_WRITERS: dict[str, Callable[[LineageGraph], str]] = {
    ".svg": lambda graph: svg(graph) + "\n",
    ".mmd": mermaid,
    ".html": _page,
    ".json": _json,
}
