"""A lineage graph -> a picture: one SVG document, without script, links, ids or fonts of its own.

Kinds differ by shape, icon and colour, statuses by colour, sign and word, so that none of them needs
the other. Colours follow the reader's light or dark theme. All text passes through `html.esc`.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from attrs import evolve, frozen

from modelhub_sdk.domain.lineage import Edge, Node, NodeKind
from modelhub_sdk.views import text
from modelhub_sdk.views.html import _DARK, _LIGHT, Html, esc, join, tag
from modelhub_sdk.views.layout import Box, Line, Link, arrange

__all__ = ["KINDS", "Scene", "called", "cut", "draw", "fit", "standing", "text_width"]

KINDS: dict[NodeKind, tuple[str, str]] = {
    "datum": ("datum", "datums"),
    "file": ("file", "files"),
    "code": ("code", "code"),
    "dataset": ("dataset version", "dataset versions"),
    "run": ("run", "runs"),
    "model": ("model version", "model versions"),
    "use": ("use", "uses"),
}
"""What each kind is called, one and several, in the order of a legend."""

_STANDING = {
    **dict.fromkeys(("approved", "completed", "ok", "good", "success", "succeeded", "served"), "good"),
    **dict.fromkeys(("rejected", "failed", "error", "bad", "refused", "failure"), "bad"),
    **dict.fromkeys(("pending", "running", "interrupted", "warning"), "wait"),
}

_LABEL, _DETAIL, _SMALL = 13.0, 11.0, 11.0  # sizes of letters
_TEXT = 178.0  # the widest text in a box
_ICON = 18.0
_MARGIN = 26.0
_LONG = 1_000  # characters in a tooltip


@frozen
class Scene:
    """What is drawn: `root` is ringed, the `notes` stand below."""

    root: str
    nodes: Sequence[Node]
    edges: Sequence[Edge]
    notes: Sequence[str] = ()


def standing(status: str | None) -> str | None:
    """Return what the word of a status means: ``good``, ``bad`` or ``wait``; None for any other word."""
    return _STANDING.get(status or "")


def called(node: Node) -> str:
    """Return what to call a node: a commit by its first digits, anything else by its label."""
    label = node.label or node.id
    if node.kind == "code" and len(label) >= 20 and set(label) <= set("0123456789abcdef"):
        return label[:8]
    return label


# --- Widths of text --------------------------------------------------------------------------------

_NARROW, _SLIM, _BROAD = frozenset("iljI.,:;'|!"), frozenset('frt()[]{}/\\-"` *'), frozenset("mwMW@%")


def _advance(character: str) -> float:
    if character in _NARROW:
        return 0.31
    if character in _SLIM:
        return 0.43
    if character in _BROAD:
        return 0.95
    if character.isascii():
        return 0.69 if character.isupper() else 0.585
    if unicodedata.combining(character):
        return 0.0
    return (
        1.05 if unicodedata.east_asian_width(character) in "WF" else 1.25 if ord(character) > 0xFFFF else 0.72
    )


def text_width(words: str, size: float) -> float:
    """Return about how wide *words* are in a system font of that *size*: rather too wide than too narrow."""
    return size * sum(map(_advance, words))


def fit(words: str, size: float, room: float) -> str:
    """Return *words*, or their beginning and their end around ``…``, no wider than *room*."""
    if text_width(words, size) <= room:
        return words
    room -= text_width("…", size)
    tail = _within(reversed(words), size, room * 0.4)[::-1].lstrip()
    while tail and unicodedata.combining(tail[0]):
        tail = tail[1:]
    return _within(words, size, room - text_width(tail, size)).rstrip() + "…" + tail


def cut(words: str, size: float, room: float) -> str:
    """Return *words*, or their beginning before ``…``, no wider than *room*."""
    if text_width(words, size) <= room:
        return words
    return _within(words, size, room - text_width("…", size)).rstrip() + "…"


def _within(words: Iterable[str], size: float, room: float) -> str:
    kept = []
    for character in words:
        room -= size * _advance(character)
        if room < 0:
            break
        kept.append(character)
    return "".join(kept)


# --- Colours -----------------------------------------------------------------------------------------

_INK: dict[str, tuple[str, str]] = {
    # what: in the light, in the dark
    "paper": ("#ffffff", "#161b22"),
    "ink": ("#1c2430", "#e6eaf0"),
    "dim": ("#5d6b80", "#97a3b4"),
    "rule": ("#e4e7ec", "#303945"),
    "line": ("#98a2b3", "#667589"),
    "ring": ("#3355c8", "#8fb0ff"),
    "good": ("#12733f", "#6fd79a"),
    "bad": ("#b3261e", "#ff9d94"),
    "wait": ("#8a5a00", "#f0c25e"),
    "run": ("#4557c4", "#9db0ff"),
    "run-in": ("#edf0fd", "#222b4d"),
    "dataset": ("#0f7670", "#5fd0c6"),
    "dataset-in": ("#e2f4f2", "#12332f"),
    "datum": ("#5d6b80", "#a5b1c2"),
    "datum-in": ("#f4f5f8", "#232b35"),
    "code": ("#7a4fb5", "#c7a5f5"),
    "code-in": ("#f5effc", "#2d2340"),
    "use": ("#ad3f78", "#f297c3"),
    "use-in": ("#fdf0f6", "#3c1f30"),
    "model": ("#48566b", "#b4c3e4"),
    "model-in": ("#ffffff", "#1e252e"),
    "good-in": ("#e3f5ea", "#153524"),
    "bad-in": ("#fdecea", "#431d1b"),
    "wait-in": ("#fdf3d8", "#3a2f12"),
}

_RULES = (
    (".mhg-paper", "fill:{paper};stroke:{rule}"),
    ("text", "fill:{ink}"),
    (".mhg-dim", "fill:{dim}"),
    (".mhg-edge", "stroke:{line}"),
    (".mhg-tip", "fill:{line}"),
    (".mhg-halo", "fill:{paper}"),
    (".mhg-ring", "stroke:{ring}"),
    *(
        rule
        for kind in ("run", "dataset", "datum", "code", "use", "model")
        for rule in (
            (f".mhg-{kind} .mhg-shape", f"fill:{{{kind}-in}};stroke:{{{kind}}}"),
            (f".mhg-{kind} .mhg-icon", f"stroke:{{{kind}}}"),
        )
    ),
    *(
        rule
        for look in ("good", "bad", "wait")
        for rule in (
            (f".mhg-model.mhg-{look} .mhg-shape", f"fill:{{{look}-in}};stroke:{{{look}}}"),
            (f".mhg-model.mhg-{look} .mhg-icon", f"stroke:{{{look}}}"),
            (f".mhg-{look} .mhg-word", f"fill:{{{look}}}"),
            (f".mhg-{look} .mhg-disc", f"fill:{{{look}}}"),
        )
    ),
    (".mhg-sign", "stroke:{paper}"),
)


def _colours(scopes: Sequence[str], theme: int) -> str:
    ink = {name: pair[theme] for name, pair in _INK.items()}
    return "".join(
        ",".join(f"{scope} {where}" for scope in scopes) + "{" + what.format_map(ink) + "}"
        for where, what in _RULES
    )


def _style() -> str:
    # Plain colours for each theme, no variables: many programs that are not browsers know none.
    dark = [scope.replace(".mh", ".mhg") for scope in _DARK]
    light = [scope.replace(".mh", ".mhg") for scope in _LIGHT]
    return (
        '.mhg text{font:400 11px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}'
        ".mhg .mhg-label{font-size:13px;font-weight:600}.mhg .mhg-word{font-weight:600}"
        '.mhg .mhg-code .mhg-label{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",'
        "monospace;font-weight:500;font-size:12px}"
        ".mhg-shape,.mhg-paper{stroke-width:1.25}.mhg-edge{fill:none;stroke-width:1.5}"
        ".mhg-back{stroke-dasharray:5 4}.mhg-ring{fill:none;stroke-width:2.5}"
        ".mhg-icon,.mhg-sign{fill:none;stroke-width:1.6;stroke-linecap:round;stroke-linejoin:round}"
        ".mhg-halo{opacity:.92}"
        + _colours([".mhg"], 0)
        + "@media(prefers-color-scheme:dark){"
        + _colours([".mhg"], 1)
        + "}"
        + _colours(dark, 1)
        + _colours(light, 0)
    )


# --- Shapes --------------------------------------------------------------------------------------------

_ICONS: dict[str, str] = {
    # In a square of 18.
    "run": "M6 3.8v10.4l8.4-5.2z",
    "model": "M9 1.8l6.3 3.6v7.2L9 16.2l-6.3-3.6V5.4zM2.9 5.5L9 9l6.1-3.5M9 9v7",
    "dataset": "M3 4.4c0-3.2 12-3.2 12 0s-12 3.2-12 0v9.2c0 3.2 12 3.2 12 0V4.4M3 9c0 3.2 12 3.2 12 0",
    "datum": "M4 2h6.5L14 5.5V16H4zM10.5 2v3.5H14M7 8.6h4v4H7z",
    "file": "M4 2h6.5L14 5.5V16H4zM10.5 2v3.5H14M6.6 9h4.8M6.6 12h4.8",
    "code": "M6 5L2 9l4 4M12 5l4 4-4 4M10.2 3.6L7.8 14.4",
    "use": "M2 9h9M8 5.6L11.4 9 8 12.4M9 2.4h6.5v13.2H9",
}
_SIGNS = {
    # Around its centre.
    "good": "M-3.4 .2L-1 2.7 3.5-2.5",
    "bad": "M-2.6-2.6L2.6 2.6M2.6-2.6L-2.6 2.6",
    "wait": "M0-3.4V.3L2.4 1.8",
}
_SPECIAL_SIGNS = {"running": "M-1.6-3L3 0-1.6 3z", "interrupted": "M-1.7-2.6v5.2M1.7-2.6v5.2"}


def _look(kind: NodeKind) -> str:
    return "datum" if kind == "file" else kind


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _path(data: str, class_: str | None = None) -> Html:
    return tag("path", d=Html(data), class_=class_)


def _rect(box: Box, radius: float, class_: str) -> Html:
    return tag(
        "rect",
        x=_n(box.x),
        y=_n(box.y),
        width=_n(box.width),
        height=_n(box.height),
        rx=_n(radius),
        class_=class_,
    )


def _grown(box: Box, by: float) -> Box:
    return Box(box.x - by, box.y - by, box.width + 2 * by, box.height + 2 * by)


def _shape(kind: str, box: Box) -> Html:
    left, top, right, bottom = map(_n, (box.x, box.y, box.right, box.bottom))
    if kind == "run":
        return _rect(box, box.height / 2, "mhg-shape")
    if kind == "dataset":
        small = Box(box.x, box.y + _SHEETS, box.width - _SHEETS, box.height - _SHEETS)
        sheets = [
            Box(small.x + by, small.y - by, small.width, small.height) for by in (_SHEETS, _SHEETS / 2, 0)
        ]
        return join(_rect(sheet, 5, "mhg-shape") for sheet in sheets)
    if kind == "datum":
        return _path(
            f"M{left} {top}H{_n(box.right - 11)}L{right} {_n(box.y + 11)}V{bottom}H{left}Z"
            f"M{_n(box.right - 11)} {top}V{_n(box.y + 11)}H{right}",
            "mhg-shape",
        )
    if kind == "use":
        return _path(
            f"M{left} {top}H{_n(box.right - 14)}L{right} {_n(box.middle)} {_n(box.right - 14)} {bottom}H{left}Z",
            "mhg-shape",
        )
    return _rect(box, 3 if kind == "code" else 9, "mhg-shape")


def _icon(kind: str, x: float, y: float) -> Html:
    return tag("path", d=Html(_ICONS[kind]), class_="mhg-icon", transform=f"translate({_n(x)} {_n(y)})")


def _sign(status: str | None, x: float, y: float) -> Html | None:
    meant = standing(status)
    if meant is None:
        return None
    drawn = _SPECIAL_SIGNS.get(status or "", _SIGNS[meant])
    return tag(
        "g",
        tag("circle", r="7.5", class_="mhg-disc"),
        _path(drawn, "mhg-sign"),
        transform=f"translate({_n(x)} {_n(y)})",
    )


# --- Boxes -----------------------------------------------------------------------------------------------


@frozen
class _Card:
    """A node, with its texts cut to size and the room that they take; `lines` have a class each."""

    node: Node
    lines: tuple[tuple[str, str], ...]
    width: float
    height: float


_SHEETS = 6.0  # how far the sheets behind a dataset look out
_INSET = {"run": 16.0, "use": 12.0, "dataset": 12.0}  # left of the icon
_OUTSET = {"run": 16.0, "use": 24.0, "dataset": 18.0, "datum": 15.0}  # right of the text


def _card(node: Node) -> _Card:
    look = _look(node.kind)
    sign = 24.0 if standing(node.status) else 0.0
    label = fit(text.clean(called(node)[:_LONG]), _LABEL, _TEXT - sign)
    widths = [text_width(label, _LABEL) * (1.1 if look == "code" else 1.0) + sign]
    lines = [(label, "mhg-label")]
    for words, class_ in ((node.status, "mhg-dim mhg-word"), (node.detail, "mhg-dim")):
        if words:
            lines.append((cut(text.clean(words[:_LONG]), _DETAIL, _TEXT), class_))
            widths.append(text_width(lines[-1][0], _DETAIL))
    width = _INSET.get(look, 12) + _ICON + 9 + max(*widths, 30) + _OUTSET.get(look, 12)
    height = 22 + 14 * len(lines) + (_SHEETS if look == "dataset" else 0)
    return _Card(node, tuple(lines), round(width), height)


def _node(card: _Card, box: Box, aside: Sequence[str]) -> Html:
    node, look = card.node, _look(card.node.kind)
    meant = standing(node.status)
    classes = ["mhg-node", f"mhg-{look}", *([f"mhg-{meant}"] if meant else [])]
    middle = box.middle + (_SHEETS / 2 if look == "dataset" else 0)
    x = box.x + _INSET.get(look, 12)
    right = box.right - _OUTSET.get(look, 12)
    start = x + _ICON + 9
    first = middle + 4.5 - 7.5 * (len(card.lines) - 1)
    parts: list[Html | None] = [
        tag("title", esc(_told(node, aside), lines=True)),
        _shape(look, box),
        _icon(node.kind, x, middle - _ICON / 2),
        *(
            _line(words, Box(start, first + 15 * place - 14, box.right - start, 20), class_)
            for place, (words, class_) in enumerate(card.lines)
        ),
        _sign(node.status, right - 7, first - 4.5),
    ]
    return tag("g", *parts, class_=" ".join(classes))


def _ring(card: _Card, box: Box) -> Html:
    return _rect(_grown(box, 5), box.height / 2 + 5 if card.node.kind == "run" else 12, "mhg-ring")


def _line(words: str, room: Box, class_: str, *, centred: bool = False) -> Html:
    # A picture in the picture cuts off what is wider or higher than any estimate.
    inside = tag(
        "text",
        words,
        x=_n(room.width / 2) if centred else "0",
        y="14",
        class_=class_,
        text_anchor="middle" if centred else None,
    )
    return tag("svg", inside, x=_n(room.x), y=_n(room.y), width=_n(room.width), height=_n(room.height))


def _told(node: Node, aside: Sequence[str]) -> str:
    """All that is known of a node, for its tooltip."""
    lines = [f"{KINDS[node.kind][0]}: {node.label}", node.status, node.detail, node.id, *aside]
    return "\n".join(line.replace("\n", " ")[:_LONG] for line in lines if line)


# --- Lines -------------------------------------------------------------------------------------------------


def _course(line: Line) -> str:
    points = line.points
    drawn = [f"M{_n(points[0][0])} {_n(points[0][1])}"]
    for (x0, y0), (x1, y1) in pairwise(points):
        if abs(y0 - y1) < 0.05:
            drawn.append(f"H{_n(x1)}")
        else:
            bend = _n((x0 + x1) / 2)
            drawn.append(f"C{bend} {_n(y0)} {bend} {_n(y1)} {_n(x1)} {_n(y1)}")
    return "".join(drawn)


def _edge(edge: Edge, line: Line, nodes: dict[str, Node]) -> Html:
    x, y = line.points[-1]
    back = 7 if line.backward else -7
    told = f"{called(nodes[edge.source])} → {called(nodes[edge.target])}"
    title = tag("title", esc(f"{told}: {edge.label}" if edge.label else told, limit=_LONG))
    return tag(
        "g",
        title,
        _path(_course(line), "mhg-edge mhg-back" if line.backward else "mhg-edge"),
        _path(f"M{_n(x)} {_n(y)}L{_n(x + back)} {_n(y - 4)}V{_n(y + 4)}Z", "mhg-tip"),
    )


def _edge_label(words: str, box: Box) -> Html:
    room = Box(box.x, box.middle - 10, box.width, 20)
    return join([_rect(box, 4, "mhg-halo"), _line(words, room, "mhg-dim", centred=True)])


# --- The whole ---------------------------------------------------------------------------------------------


def draw(scene: Scene) -> str:
    """Return the SVG document of *scene*, whose edges have both of their nodes in it."""
    cards = [_card(node) for node in scene.nodes]
    places = {node.id: place for place, node in enumerate(scene.nodes)}
    labels = [cut(text.clean((edge.label or "")[:_LONG]), _SMALL, 132) for edge in scene.edges]
    links = [
        Link(
            places[edge.source],
            places[edge.target],
            (text_width(label, _SMALL) + 10, 16.0) if label else None,
        )
        for edge, label in zip(scene.edges, labels, strict=True)
    ]
    found = arrange([(card.width, card.height) for card in cards], links)
    nodes = {node.id: node for node in scene.nodes}
    if any(line.backward for line in found.lines):
        scene = evolve(scene, notes=[*scene.notes, "Dashed lines close a circle: they run against time."])
    legend = list(_legend(scene, found.height + 2 * _MARGIN, max(found.width, 420.0)))
    width = max(found.width, 420.0 if legend else 120.0) + 2 * _MARGIN
    height = found.height + 2 * _MARGIN + sum(22 for _ in legend) + (6 if legend else 0)
    itself = {edge.source for edge in scene.edges if edge.source == edge.target}
    placed = list(zip(cards, found.boxes, strict=True))
    # What comes later covers what came before.
    drawn = [_ring(card, box) for card, box in placed if card.node.id == scene.root]
    drawn += [
        _edge(edge, line, nodes) for edge, line in zip(scene.edges, found.lines, strict=True) if line.points
    ]
    drawn += [
        _edge_label(label, line.label) for label, line in zip(labels, found.lines, strict=True) if line.label
    ]
    drawn += [
        _node(card, box, ["goes into itself"] if card.node.id in itself else []) for card, box in placed
    ]
    paper = _rect(Box(0.5, 0.5, width - 1, height - 1), 12, "mhg-paper")
    middle = tag("g", *drawn, transform=f"translate({_n(_MARGIN)} {_n(_MARGIN)})")
    below = tag("g", *legend, transform=f"translate({_n(_MARGIN)} 0)")
    return str(
        tag(
            "svg",
            Html(f"<style>{_style()}</style>"),
            paper,
            middle,
            below,
            xmlns="http://www.w3.org/2000/svg",
            class_="mhg",
            role="img",
            aria_label=_summary(scene),
            width=_n(width),
            height=_n(height),
            viewBox=f"0 0 {_n(width)} {_n(height)}",
        )
    )


def _summary(scene: Scene) -> str:
    root = next((called(node) for node in scene.nodes if node.id == scene.root), scene.root)
    counts = Counter(node.kind for node in scene.nodes)
    parts = [text.count(counts[kind], *names) for kind, names in KINDS.items() if counts[kind]]
    told = f"Lineage of {root[:200]}: {', '.join(parts) or 'nothing is known'}"
    return ". ".join([told, *scene.notes])


def _legend(scene: Scene, top: float, room: float) -> Iterator[Html]:
    """Yield the lines below the picture: the kinds and statuses that occur in it, and the notes."""
    kinds = Counter(node.kind for node in scene.nodes)
    items: list[tuple[Html, str, str]] = []
    if len(scene.nodes) > 1:
        items += [
            (_icon(kind, 0, -13), KINDS[kind][0], f"mhg-{_look(kind)}") for kind in KINDS if kinds[kind]
        ]
        said = {node.status: None for node in scene.nodes}
        items += [
            (sign, status, f"mhg-{_STANDING[status]}")
            for status in _STANDING
            if status in said and (sign := _sign(status, 9, -4)) is not None
        ]
    line: list[Html] = []
    x, y = 0.0, top
    for sign, words, class_ in items:
        wide = 24 + text_width(words, _SMALL) + 20
        if line and x + wide - 20 > room:
            yield tag("g", *line)
            line, x, y = [], 0.0, y + 22
        word = tag("text", words, x="24", y="0", class_="mhg-dim")
        line.append(tag("g", sign, word, class_=class_, transform=f"translate({_n(x)} {_n(y)})"))
        x += wide
    if line:
        yield tag("g", *line)
        y += 22
    for note in scene.notes:
        yield tag("text", note, x="0", y=_n(y), class_="mhg-dim")
        y += 22
