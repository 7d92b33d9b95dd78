"""A parsed query to a WHERE clause: only constants of this module reach the text, every value is bound."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from attrs import define, field

from modelhub_sdk.domain.query import Condition, Order, Query
from modelhub_sdk.index.fold import micros

_NOW = "{t}.since <= ? AND {t}.until > ?"
_NUMBER_OF_TEXT = (
    "CASE WHEN substr(t.body, 1, 2) IN ('n:', 'b:') THEN CAST(substr(t.body, 3) AS DOUBLE PRECISION) END"
)
_TEXT_OF_TEXT = "CASE WHEN substr(t.body, 1, 2) = 's:' THEN substr(t.body, 3) END"
_PLAIN = {
    "model": "v.model",
    "number": "v.number",
    "size": "v.size",
    "digest": "v.manifest",
    "run_id": "v.run_id",
}
_COMPARE = {"=", "!=", "<", "<=", ">", ">="}
_ACTOR = "(SELECT t.body FROM @entry e JOIN @text t ON t.seal = e.actor WHERE e.seq = {seq})"


@define
class Clause:
    """SQL text and the values bound in it, in order."""

    dialect: str
    at: int
    text: list[str] = field(factory=list)
    values: list[object] = field(factory=list)
    lost: tuple[str, ...] = ()

    def add(self, text: str, *values: object) -> None:
        """Add a condition that must hold."""
        self.text.append(text)
        self.values.extend(values)

    def where(self) -> str:
        """Return the conditions joined."""
        return " AND ".join(f"({part})" for part in self.text) or "1 = 1"

    def compared(self, expression: str, op: str, value: object, *before: object) -> tuple[str, list[object]]:
        """Return *expression* compared with *value*; *before* are bound inside the expression."""
        bound = list(before)
        if op in _COMPARE:
            return f"{expression} {'<>' if op == '!=' else op} ?", [*bound, value]
        if op == "~":
            function = "instr" if self.dialect == "sqlite" else "strpos"
            return f"{function}({expression}, ?) > 0", [*bound, value]
        if op == "ILIKE":
            expression, value = f"lower({expression})", str(value).translate(_LOWER)
        if self.dialect == "sqlite":  # its own LIKE ignores case
            return f"mh_like(?, {expression})", [value, *bound]
        return f"({expression}) LIKE ? ESCAPE '\\'", [*bound, value]


def containing(dialect: str, name: str, at: int, text: str) -> tuple[Any, ...]:
    """Return the condition that *text* is a piece of a name, a title or a description, whatever its case (A to Z)."""
    function = "instr" if dialect == "sqlite" else "strpos"
    lowered = text.translate(_LOWER)
    return (
        f"{function}(lower({name}), ?) > 0 OR EXISTS (SELECT 1 FROM @fact f JOIN @text t ON t.seal = f.value"
        " WHERE f.model = v.model AND f.number = 0 AND f.name IN ('text:title', 'text:description')"
        f" AND f.since <= ? AND f.until > ? AND {function}(lower(t.body), ?) > 0)",
        lowered,
        at,
        at,
        lowered,
    )


_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def where(query: Query, of: str, dialect: str, at: int, lost: Sequence[str] = ()) -> Clause:
    """Return the clause for *query* over the table ``v`` of the things that *of* says.

    That is ``@version`` (versions), ``@model`` (models), ``@dataset`` (datasets) or ``@run`` (runs).
    *lost* are the subjects of the runs of which nothing has been heard: they count as interrupted.
    """
    clause = Clause(dialect, at, lost=tuple(lost))
    for condition in query.conditions:
        text, values = _CONDITIONS[of](clause, condition)
        clause.add(text, *values)
    return clause


def order(wanted: Order | None, of: str, at: int) -> tuple[str, list[object]]:
    """Return an ORDER BY list: numbers, then texts, then what is missing; ties newest first."""
    newest = "v.seq DESC, v.n DESC"
    if wanted is None:
        return newest, []
    down = " DESC" if wanted.descending else ""
    parts: list[str] = []
    values: list[object] = []
    for expression, bound in _sortable(wanted, of, at):
        parts += [f"({expression}) IS NULL", f"({expression}){down}"]
        values += [*bound, *bound]
    return ", ".join([*parts, newest]), values


def _number(of: str) -> str:
    return "v.number" if of in ("versions", "runs") else "0"


def _sortable(wanted: Order, of: str, at: int) -> list[tuple[str, list[object]]]:
    name, key, number = wanted.field, wanted.key, _number(of)
    if key is not None and name in ("metrics", "params"):
        table = {"metrics": "metric", "params": "param"}[name]
        place = f"FROM @{table} m WHERE m.model = v.model AND m.number = v.number AND m.name = ?"
        return [(f"SELECT m.value {place}", [key]), (f"SELECT m.text {place}", [key])]
    if key is not None:
        source, bound = _fields(key, number, at)
        return [(f"SELECT {e} {source} LIMIT 1", bound) for e in (_NUMBER_OF_TEXT, _TEXT_OF_TEXT)]
    if name == "name":
        return [("v.model" if of == "models" else "v.name", [])]
    if of == "runs" and name in _RUN_PLAIN:
        return [(_RUN_PLAIN[name], [])]
    if of == "versions" and name in _PLAIN:
        return [(_PLAIN[name], [])]
    expression, values = _single(name, of, at)
    return [(expression, values)]


def _single(name: str, of: str, at: int) -> tuple[str, list[object]]:
    """Return a scalar expression for a field that holds one thing, with its bound values."""
    number = _number(of)
    now = [at, at]
    if name in ("note", "description", "title", "owner"):
        return (
            f"(SELECT t.body FROM @fact f JOIN @text t ON t.seal = f.value WHERE f.model = v.model AND f.number = {number}"
            f" AND f.name = 'text:{name}' AND {_NOW.format(t='f')})",
            [*now],
        )
    if name == "status":
        return (
            "(SELECT f.value FROM @fact f WHERE f.model = v.model AND f.number = v.number AND f.name = 'status'"
            f" AND {_NOW.format(t='f')})",
            [*now],
        )
    if name in ("created_at", "started_at"):
        return "(SELECT e.at FROM @entry e WHERE e.seq = v.seq)", []
    if name in ("ended_at", "duration"):
        column = "at" if name == "ended_at" else "duration"
        return (
            f"(SELECT d.{column} FROM @finish d WHERE d.model = v.model AND d.number = v.number AND d.seq <= ?)",
            [at],
        )
    if name in ("created_by", "user"):
        return _ACTOR.format(seq="v.seq"), []
    if name in ("decided_at", "decided_by"):
        seq = (
            "(SELECT CAST(f.value AS BIGINT) FROM @fact f WHERE f.model = v.model AND f.number = v.number"
            f" AND f.name = 'decided' AND {_NOW.format(t='f')})"
        )
        if name == "decided_by":
            return _ACTOR.format(seq=seq), [*now]
        return f"(SELECT e.at FROM @entry e WHERE e.seq = {seq})", [*now]
    if name == "modified_at":
        return (
            "(SELECT e.at FROM @entry e WHERE e.seq = (SELECT max(x.seq) FROM @event x WHERE x.model = v.model"
            " AND x.seq <= ?))",
            [at],
        )
    if name == "last_number":
        return "(SELECT coalesce(max(x.number), 0) FROM @version x WHERE x.model = v.model AND x.seq <= ?)", [
            at
        ]
    if name == "latest":
        return (
            "(SELECT max(f.number) FROM @fact f WHERE f.model = v.model AND f.name = 'status' AND f.value = 'approved'"
            f" AND {_NOW.format(t='f')} AND NOT EXISTS (SELECT 1 FROM @fact a WHERE a.model = f.model"
            f" AND a.number = f.number AND a.name = 'archived' AND {_NOW.format(t='a')}))",
            [*now, *now],
        )
    return (
        f"(CASE WHEN EXISTS (SELECT 1 FROM @fact f WHERE f.model = v.model AND f.number = {number}"
        f" AND f.name = 'archived' AND {_NOW.format(t='f')}) THEN 1 ELSE 0 END)",
        [*now],
    )


def _fields(key: str, number: str, at: int) -> tuple[str, list[object]]:
    """Return a FROM clause over the one text ``t`` that ``fields.<key>`` means: of the literal key, else a nested one.

    What lies inside a field is a fact ``leaf:<field>``; its path and value are the texts .k and .v of its place.
    """
    cuts = [i for i, c in enumerate(key) if c == "."]
    paths = [(key, ""), *((key[:cut], key[cut + 1 :]) for cut in cuts)]
    inside = " OR ".join(
        "(f.name = ? AND EXISTS (SELECT 1 FROM @text k WHERE k.seal = f.value || '.k' AND k.body = ?))"
        for _ in paths
    )
    literal = "l.model = v.model AND l.number = {n} AND l.name = ? AND {now}".format(
        n=number, now=_NOW.format(t="l")
    )
    return (
        f"FROM @fact f JOIN @text t ON t.seal = f.value OR t.seal = f.value || '.v' WHERE f.model = v.model"
        f" AND f.number = {number} AND {_NOW.format(t='f')} AND (f.name = ? OR (({inside}) AND NOT EXISTS"
        f" (SELECT 1 FROM @fact l JOIN @text p ON p.seal = l.value WHERE {literal} AND substr(p.body, 1, 2) <> 'j:')))",
        [
            at,
            at,
            "field:" + key,
            *(part for top, path in paths for part in ("leaf:" + top, path)),
            "field:" + key,
            at,
            at,
        ],
    )


def _measured(clause: Clause, c: Condition) -> tuple[str, list[object]]:
    table = "metric" if c.field == "metrics" else "param"
    column = "m.text" if isinstance(c.value, str) else "m.value"
    text, values = clause.compared(column, c.op, c.value)
    return (
        f"EXISTS (SELECT 1 FROM @{table} m WHERE m.model = v.model AND m.number = v.number AND m.name = ? AND {text})",
        [c.key, *values],
    )


def _version(clause: Clause, c: Condition) -> tuple[str, list[object]]:
    if c.key is not None and c.field in ("metrics", "params"):
        return _measured(clause, c)
    if c.field == "alias":
        # The value of an alias is {"weights": {"<number>": ...}}: a version is in it by its quoted number.
        any_of = (
            "SELECT 1 FROM @fact f WHERE f.model = v.model AND f.number = 0 AND substr(f.name, 1, 6) = 'alias:'"
            f" AND {_NOW.format(t='f')}"
            " AND substr(f.value, 1) LIKE '%\"' || CAST(v.number AS TEXT) || '\": %'"
        )
        return _set(clause, c, any_of, "substr(f.name, 7)")
    if c.field == "tags":
        return _set(clause, c, _facts("tag", "v.number"), "f.value")
    if c.field in _PLAIN:
        return clause.compared(_PLAIN[c.field], c.op, c.value)
    return _common(clause, c, "versions")


def _model(clause: Clause, c: Condition) -> tuple[str, list[object]]:
    if c.field == "name":
        return clause.compared("v.model", c.op, c.value)
    if c.field in ("tags", "project"):
        return _set(clause, c, _facts("tag" if c.field == "tags" else "project", "0"), "f.value")
    if c.field == "status":
        live = (
            "SELECT 1 FROM @fact f WHERE f.model = v.model AND f.name = 'status'"
            f" AND {_NOW.format(t='f')}"
            " AND NOT EXISTS (SELECT 1 FROM @fact a WHERE a.model = f.model AND a.number = f.number"
            f" AND a.name = 'archived' AND {_NOW.format(t='a')})"
        )
        return _set(clause, c, live, "f.value", times=2)
    return _common(clause, c, "models")


def _dataset(clause: Clause, c: Condition) -> tuple[str, list[object]]:
    if c.field == "name":
        return clause.compared("v.name", c.op, c.value)
    if c.field in ("tags", "project"):
        return _set(clause, c, _facts("tag" if c.field == "tags" else "project", "0"), "f.value")
    return _common(clause, c, "datasets")


_RUN_PLAIN = {
    "id": "v.id",
    "project": "v.project",
    "step": "v.step",
    "pipeline": "v.pipeline",
    "group": "v.family",
    "parent": "v.parent",
    "commit": "v.code",
}


def _run(clause: Clause, c: Condition) -> tuple[str, list[object]]:
    if c.key is not None and c.field in ("metrics", "params"):
        return _measured(clause, c)
    if c.field == "name":
        return clause.compared("v.name", c.op, c.value)
    if c.field in _RUN_PLAIN:
        return clause.compared(_RUN_PLAIN[c.field], c.op, c.value)
    if c.field == "tags":
        return _set(clause, c, _facts("tag", "v.number"), "f.value")
    if c.field == "status":
        expression, values = _single("status", "runs", clause.at)
        if clause.lost:
            marks = ", ".join("?" * len(clause.lost))
            expression = f"(CASE WHEN v.model IN ({marks}) AND {expression} = 'running' THEN 'interrupted' ELSE {expression} END)"
            values = [*clause.lost, *values, *values]
        return clause.compared(expression, c.op, c.value, *values)
    return _common(clause, c, "runs")


def _facts(name: str, number: str) -> str:
    return (
        f"SELECT 1 FROM @fact f WHERE f.model = v.model AND f.number = {number} AND f.name = '{name}'"
        f" AND {_NOW.format(t='f')}"
    )


def _set(clause: Clause, c: Condition, any_of: str, column: str, times: int = 1) -> tuple[str, list[object]]:
    now: list[object] = [clause.at, clause.at] * times
    if c.op == "!=":
        return f"NOT EXISTS ({any_of} AND {column} = ?)", [*now, c.value]
    text, values = clause.compared(column, c.op, c.value)
    return f"EXISTS ({any_of} AND {text})", [*now, *values]


def _common(clause: Clause, c: Condition, of: str) -> tuple[str, list[object]]:
    if c.key is not None:
        source, bound = _fields(c.key, _number(of), clause.at)
        expression = _TEXT_OF_TEXT if isinstance(c.value, str) else _NUMBER_OF_TEXT
        text, values = clause.compared(expression, c.op, c.value)
        return f"EXISTS (SELECT 1 {source} AND {text})", [*bound, *values]
    expression, before = _single(c.field, of, clause.at)
    value = c.value
    if c.kind == "time":
        value = micros(datetime.fromisoformat(str(value)))
    elif c.kind == "flag":
        value = 1 if value else 0
    return clause.compared(expression, c.op, value, *before)


_CONDITIONS = {"versions": _version, "models": _model, "datasets": _dataset, "runs": _run}
