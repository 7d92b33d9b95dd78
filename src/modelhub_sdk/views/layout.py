"""Where the boxes and lines of a directed graph stand: layers from left to right, few crossings.

Layers by longest path, lines that would go back turned for the time of the arrangement, a place of
its own for a line in every layer that it crosses, orders by barycentres, heights by isotonic
regression. Lines bend between the columns only and are level inside them, so that none runs through
a box or a label. The same input gives the same picture.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeAlias

from attrs import frozen

__all__ = ["Box", "Layout", "Line", "Link", "arrange"]

Point: TypeAlias = tuple[float, float]
Size: TypeAlias = tuple[float, float]

_PLACES = 6_000  # of lines in layers that they cross; the longest lines beyond are drawn straight
_EFFORT = 90_000  # places looked at while orders are improved

_BETWEEN = 22.0  # from box to box in a column
_BESIDE = 13.0  # from a line to a line or a box
_GAP = (40.0, 150.0)  # between two columns of boxes: at least, at most
_LABEL_GAP = (20.0, 110.0)  # beside a column of labels


@frozen
class Box:
    """A rectangle: its left upper corner and its size."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The right side."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """The lower side."""
        return self.y + self.height

    @property
    def middle(self) -> float:
        """Half of the way down."""
        return self.y + self.height / 2


@frozen
class Link:
    """From box to box, by their places in the sequence; `label` is the size of what is written on it."""

    source: int
    target: int
    label: Size | None = None


@frozen
class Line:
    """The course of a link. Between points of one height it is straight, between others it bends.

    `points` is empty for a link from a box to itself; `backward` lines go from right to left.
    """

    points: tuple[Point, ...]
    label: Box | None = None
    backward: bool = False


@frozen
class Layout:
    """Boxes and lines in the order in which they were asked for, and the size of the whole."""

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    width: float
    height: float


def arrange(sizes: Sequence[Size], links: Sequence[Link]) -> Layout:
    """Return places for boxes of these *sizes* and for the *links* between them."""
    ends = [(link.source, link.target) for link in links]
    backward = _backward(len(sizes), ends)
    forward = [(b, a) if i in backward else (a, b) for i, (a, b) in enumerate(ends)]
    grid = _Grid(sizes, links, forward, _layers(len(sizes), forward))
    grid.order()
    grid.heights()
    return grid.layout(backward)


def _backward(count: int, ends: Sequence[tuple[int, int]]) -> set[int]:
    """Return the links that close a cycle: without them, in these directions, there is none."""
    out: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    entered = [0] * count
    for place, (source, target) in enumerate(ends):
        if source != target:
            out[source].append((place, target))
            entered[target] += 1
    found: set[int] = set()
    state = [0] * count  # 1: on the way, 2: done
    for start in sorted(range(count), key=lambda node: entered[node] > 0):
        if state[start]:
            continue
        state[start] = 1
        way = [(start, iter(out[start]))]
        while way:
            node, rest = way[-1]
            for place, target in rest:
                if state[target] == 1:
                    found.add(place)
                elif not state[target]:
                    state[target] = 1
                    way.append((target, iter(out[target])))
                    break
            else:
                state[node] = 2
                way.pop()
    return found


def _layers(count: int, ends: Sequence[tuple[int, int]]) -> list[int]:
    """Return the layer of each box: after all that it comes from, and then as near to its targets as helps."""
    before: list[list[int]] = [[] for _ in range(count)]
    after: list[list[int]] = [[] for _ in range(count)]
    for source, target in ends:
        if source != target:
            after[source].append(target)
            before[target].append(source)
    waits = [len(sources) for sources in before]
    order = [node for node in range(count) if not waits[node]]
    layer = [0] * count
    for node in order:  # grows while it is read
        for target in after[node]:
            layer[target] = max(layer[target], layer[node] + 1)
            waits[target] -= 1
            if not waits[target]:
                order.append(target)
    for node in reversed(order):
        if len(after[node]) > len(before[node]):
            layer[node] = min(layer[target] for target in after[node]) - 1
    return layer


class _Grid:
    """Items in columns: first the boxes, then a place for each line in each column that it crosses."""

    def __init__(
        self,
        sizes: Sequence[Size],
        links: Sequence[Link],
        forward: Sequence[tuple[int, int]],
        layers: Sequence[int],
    ) -> None:
        self.boxes = len(sizes)
        self.size = list(sizes)
        self.links = links
        # A label stands in a column of its own, just before the column of the target.
        ahead = {
            2 * layers[b] - 1 for (a, b), link in zip(forward, links, strict=True) if link.label and a != b
        }
        numbers = sorted({2 * layer for layer in layers} | ahead)
        columns = {number: place for place, number in enumerate(numbers)}
        self.labels_in = {columns[number] for number in ahead}
        self.column = [columns[2 * layer] for layer in layers]
        self.chains: list[list[int]] = [[] for _ in links]
        self.label_of: dict[int, int] = {}
        budget = _PLACES
        # The shortest lines first: what does not fit into the budget are the longest.
        for place in sorted(
            range(len(links)), key=lambda i: abs(layers[forward[i][1]] - layers[forward[i][0]])
        ):
            source, target = forward[place]
            if source == target:
                continue
            between = range(self.column[source] + 1, self.column[target])
            budget -= len(between)
            at = columns.get(2 * layers[target] - 1)
            self.chains[place] = (
                [source, *self._places(place, between, at), target] if budget >= 0 else [source, target]
            )
        self.before: list[list[int]] = [[] for _ in self.size]
        self.after: list[list[int]] = [[] for _ in self.size]
        for chain in self.chains:
            for left, right in pairwise(chain):
                self.after[left].append(right)
                self.before[right].append(left)
        self.columns = self._first_order(len(numbers))
        self.y = [0.0] * len(self.size)
        self.place = [0.0] * len(self.size)  # in its column: from 0, at the top, to 1
        for column in self.columns:
            self._number(column)

    def _places(self, link: int, columns: Iterable[int], label_at: int | None) -> list[int]:
        items = []
        for column in columns:
            item = len(self.size)
            label = self.links[link].label if column == label_at else None
            if label:
                self.label_of[link] = item
            self.size.append(label or (0.0, 0.0))
            self.column.append(column)
            items.append(item)
        return items

    def _first_order(self, count: int) -> list[list[int]]:
        columns: list[list[int]] = [[] for _ in range(count)]
        seen = [False] * len(self.size)
        # What hangs together comes one below the other.
        for start in sorted(range(self.boxes), key=lambda item: self.column[item]):
            way = [start]
            while way:
                item = way.pop()
                if not seen[item]:
                    seen[item] = True
                    columns[self.column[item]].append(item)
                    way += reversed(self.after[item] + self.before[item])
        return columns

    # --- the order inside the columns ------------------------------------------------------------

    def order(self) -> None:
        """Find an order in each column such that few lines cross."""
        best, fewest = [list(column) for column in self.columns], self.crossings()
        links = sum(map(len, self.after)) + len(self.size)
        for sweep in range(max(2, min(24, _EFFORT // max(1, links)))):
            if not fewest:
                break
            if sweep % 2:
                for column in reversed(self.columns[:-1]):
                    self._sort(column, self.after)
            else:
                for column in self.columns[1:]:
                    self._sort(column, self.before)
            if (crossings := self.crossings()) < fewest:
                best, fewest = [list(column) for column in self.columns], crossings
        self.columns = best

    def _sort(self, column: list[int], neighbours: Sequence[Sequence[int]]) -> None:
        weight = {item: self._mean(self.place, item, neighbours[item]) for item in column}
        column.sort(key=weight.__getitem__)
        self._number(column)

    def _number(self, column: Sequence[int]) -> None:
        for index, item in enumerate(column):
            self.place[item] = (index + 0.5) / len(column)

    @staticmethod
    def _mean(values: Sequence[float], item: int, near: Sequence[int]) -> float:
        return sum(values[other] for other in near) / len(near) if near else values[item]

    def crossings(self) -> int:
        """Return how often lines cross between the columns."""
        total = 0
        for column in self.columns:
            seen: list[float] = []
            for item in column:
                ends = sorted(self.place[other] for other in self.after[item])
                total += sum(len(seen) - bisect(seen, end) for end in ends)
                for end in ends:
                    insort(seen, end)
        return total

    # --- how high and how far ----------------------------------------------------------------------

    def heights(self) -> None:
        """Set the middle of each item: near to its neighbours', in order, and apart."""
        for column in self.columns:
            self._settle(column, [0.0] * len(column))
        rounds = max(2, min(12, _EFFORT // max(1, 2 * len(self.size))))
        for _ in range(rounds):
            for column in self.columns[1:]:
                self._settle(column, [self._mean(self.y, item, self.before[item]) for item in column])
            for column in reversed(self.columns[:-1]):
                self._settle(column, [self._mean(self.y, item, self.after[item]) for item in column])
        for _ in range(2):
            for column in self.columns:
                self._settle(
                    column,
                    [self._mean(self.y, item, self.before[item] + self.after[item]) for item in column],
                )
        for _ in range(2):
            for column in reversed(self.columns[:-1]):
                self._straighten(column, self.after, self.before)
            for column in self.columns[1:]:
                self._straighten(column, self.before, self.after)

    def _straighten(
        self, column: Sequence[int], near: Sequence[Sequence[int]], back: Sequence[Sequence[int]]
    ) -> None:
        """Move what has one neighbour, and is its only one, to the height of it; leave the others."""
        only = {
            item: near[item][0] for item in column if len(near[item]) == 1 and len(back[near[item][0]]) == 1
        }
        wishes = [self.y[only.get(item, item)] for item in column]
        self._settle(column, wishes, [9.0 if item in only else 1.0 for item in column])

    def _settle(
        self, column: Sequence[int], wishes: Sequence[float], weights: Sequence[float] | None = None
    ) -> None:
        offset, offsets = 0.0, [0.0]
        for upper, lower in pairwise(column):
            offset += self._apart(upper, lower)
            offsets.append(offset)
        # Long lines are to be straight.
        weights = weights or [1.0 if item < self.boxes else 3.0 for item in column]
        steps = isotonic([wish - at for wish, at in zip(wishes, offsets, strict=True)], weights)
        for item, step, at in zip(column, steps, offsets, strict=True):
            self.y[item] = step + at

    def _apart(self, upper: int, lower: int) -> float:
        room = _BETWEEN if max(upper, lower) < self.boxes else _BESIDE
        return (self.size[upper][1] + self.size[lower][1]) / 2 + room

    def layout(self, backward: set[int]) -> Layout:
        """Return the places that were found."""
        top = min((self.y[i] - size[1] / 2 for i, size in enumerate(self.size)), default=0.0)
        self.y = [y - top for y in self.y]
        height = max((self.y[i] + size[1] / 2 for i, size in enumerate(self.size)), default=0.0)
        left: list[float] = []
        right: list[float] = []
        x = 0.0
        for number, column in enumerate(self.columns):
            x += self._gap(number) if number else 0.0
            left.append(x)
            x += max(self.size[item][0] for item in column)
            right.append(x)

        def box(item: int) -> Box:
            width, tall = self.size[item]
            middle = (left[self.column[item]] + right[self.column[item]]) / 2
            return Box(middle - width / 2, self.y[item] - tall / 2, width, tall)

        boxes = tuple(box(item) for item in range(self.boxes))
        lines = []
        for place, chain in enumerate(self.chains):
            if not chain:
                lines.append(Line(()))
                continue
            first, *between, last = chain
            points = [(boxes[first].right, self.y[first]), (right[self.column[first]], self.y[first])]
            for item in between:
                points += [(left[self.column[item]], self.y[item]), (right[self.column[item]], self.y[item])]
            points += [(left[self.column[last]], self.y[last]), (boxes[last].x, self.y[last])]
            turned = place in backward
            label = box(self.label_of[place]) if place in self.label_of else None
            lines.append(Line(tuple(reversed(points) if turned else points), label, turned))
        return Layout(boxes, tuple(lines), x, height)

    def _gap(self, number: int) -> float:
        """Room before a column: more where lines climb."""
        least, most = _LABEL_GAP if {number, number - 1} & self.labels_in else _GAP
        climbs = (
            abs(self.y[item] - self.y[other]) for item in self.columns[number] for other in self.before[item]
        )
        return min(most, least + 0.15 * max(climbs, default=0.0))


def isotonic(wishes: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the numbers nearest to the *wishes*, by weighted squares, that never fall."""
    blocks: list[tuple[float, float, int]] = []
    for wish, weight in zip(wishes, weights, strict=True):
        mean, heavy, count = wish, weight, 1
        while blocks and blocks[-1][0] > mean:
            other, weighs, several = blocks.pop()
            mean = (other * weighs + mean * heavy) / (weighs + heavy)
            heavy, count = heavy + weighs, count + several
        blocks.append((mean, heavy, count))
    return [mean for mean, _, count in blocks for _ in range(count)]
