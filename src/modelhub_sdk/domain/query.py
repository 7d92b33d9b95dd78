"""``where=``, ``order_by=`` and ``limit=``: parsed here, answered by the index, defined by `matches`.

::

    query      = condition { "and" condition }
    condition  = field operator value
    field      = name [ "." key ]                 metrics.auc  params.`batch size`  fields.owner.team
    key        = part { "." part }                part: letters, digits, _ - / @ ; or `anything else`
    operator   = "=" "!=" "<" "<=" ">" ">="  "~" (contains)  "LIKE" "ILIKE"
    value      = 'text' | "text" (a quote inside is doubled) | number | true | false

What a condition means, alike on every backend:

- Text is compared by code point, case and all. ``~`` finds a literal piece of text. In LIKE ``%`` is
  any text, ``_`` any one character, and a backslash makes the next character literal. ILIKE is LIKE
  that ignores the case of the letters A to Z.
- ``metrics.x``, ``params.x``, ``fields.x``: a number in the condition is compared with values that are
  finite numbers (true is 1, false is 0), a text with values that are text. Values of the other kind,
  NaN, ±inf and missing keys match nothing, not even ``!=``. Dots in a key are part of it; nested
  fields are reached by them.
- ``tags``, ``alias`` and a model's ``status`` hold several texts: ``=``, ``~``, LIKE and ILIKE match
  if one of them does, ``!=`` if none is equal. ``tags.team = 'risk'`` is short for
  ``tags = 'team:risk'``.
- Times are ISO 8601, UTC where they do not say. A bare date is that whole day.
- What is not there (no owner, not decided) matches no condition on it.

``or``, ``not``, ``in`` and parentheses are not there yet, and are refused with that sentence.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, time
from typing import Any, Literal, NoReturn, TypeAlias, TypeVar

import attrs
from attrs import frozen

from modelhub_sdk.domain.values import Frozen, leaves, number, text_of
from modelhub_sdk.errors import InvalidQuery, nearest, shown

__all__ = [
    "MAX_CONDITIONS",
    "MAX_LENGTH",
    "MAX_LIMIT",
    "MAX_WILDCARDS",
    "DATASET_FIELDS",
    "MODEL_FIELDS",
    "RUN_FIELDS",
    "VERSION_FIELDS",
    "Condition",
    "Fieldset",
    "Getter",
    "Kind",
    "Order",
    "Query",
    "check_limit",
    "getter",
    "like",
    "matches",
    "parse",
    "parse_order",
    "stamp",
]

MAX_LENGTH = 10_000
"""Characters in a query."""
MAX_CONDITIONS = 50
MAX_WILDCARDS = 10
"""``%`` in one pattern: databases match patterns by backtracking."""
MAX_LIMIT = 10_000
_MAX_KEY = 250

Kind = Literal["text", "integer", "number", "time", "flag", "set", "map"]
"""What a field holds: one text, one whole number, one number, one time, true or false, several texts, values by key."""
Op = Literal["=", "!=", "<", "<=", ">", ">=", "~", "LIKE", "ILIKE"]
Getter: TypeAlias = Callable[[str, str | None], Any]
"""``(field, key) -> value``: a str, int, datetime, bool, collection of str, or value; None if not there."""
T = TypeVar("T")

_TEXT_OPS = ("=", "!=", "<", "<=", ">", ">=", "~", "LIKE", "ILIKE")
_OPS: Mapping[Kind, tuple[str, ...]] = {
    "text": _TEXT_OPS,
    "integer": ("=", "!=", "<", "<=", ">", ">="),
    "number": ("=", "!=", "<", "<=", ">", ">="),
    "time": ("=", "<", "<=", ">", ">="),
    "flag": ("=", "!="),
    "set": ("=", "!=", "~", "LIKE", "ILIKE"),
    "map": _TEXT_OPS,
}


@frozen
class Fieldset:
    """The fields that one kind of thing can be searched by.

    `kinds` maps each canonical name to its `Kind`; `synonyms` other spellings to canonical names;
    `choices` fields to the only texts that they may hold.
    """

    of: str
    kinds: Mapping[str, Kind]
    synonyms: Mapping[str, str] = Frozen()
    choices: Mapping[str, tuple[str, ...]] = Frozen()


_STATUSES = ("pending", "approved", "rejected")

VERSION_FIELDS = Fieldset(
    of="versions",
    kinds=Frozen(
        model="text",
        number="integer",
        status="text",
        tags="set",
        metrics="map",
        params="map",
        fields="map",
        created_at="time",
        created_by="text",
        decided_at="time",
        decided_by="text",
        size="integer",
        digest="text",
        run_id="text",
        alias="set",
        archived="flag",
        note="text",
        description="text",
    ),
    synonyms=Frozen(name="model", version="number", aliases="alias", tag="tags"),
    choices=Frozen(status=_STATUSES),
)

MODEL_FIELDS = Fieldset(
    of="models",
    kinds=Frozen(
        name="text",
        title="text",
        description="text",
        owner="text",
        project="set",
        tags="set",
        status="set",
        created_at="time",
        created_by="text",
        modified_at="time",
        archived="flag",
        fields="map",
        latest="integer",
        last_number="integer",
    ),
    synonyms=Frozen(model="name", projects="project", tag="tags"),
    choices=Frozen(status=_STATUSES),
)


DATASET_FIELDS = Fieldset(
    of="datasets",
    kinds=Frozen(
        name="text",
        title="text",
        description="text",
        owner="text",
        project="set",
        tags="set",
        created_at="time",
        created_by="text",
        modified_at="time",
        fields="map",
    ),
    synonyms=Frozen(dataset="name", projects="project", tag="tags"),
)

RUN_FIELDS = Fieldset(
    of="runs",
    kinds=Frozen(
        id="text",
        name="text",
        status="text",
        project="text",
        step="text",
        pipeline="text",
        group="text",
        parent="text",
        commit="text",
        user="text",
        tags="set",
        metrics="map",
        params="map",
        started_at="time",
        ended_at="time",
        duration="number",
    ),
    synonyms=Frozen(
        run_id="id", run="id", tag="tags", started="started_at", ended="ended_at", created_by="user"
    ),
    choices=Frozen(status=("running", "completed", "failed", "interrupted")),
)


@frozen
class Condition:
    """One comparison, checked against its field.

    `value` is a str for text, times (as `stamp` writes them) and sets; an int for integers; a bool
    for flags; under a map a float or a str, which says whether values are compared as numbers or
    as text. `span` is its place in the query; it does not count in comparisons.
    """

    field: str
    key: str | None
    op: Op
    value: str | int | float | bool
    span: tuple[int, int] = attrs.field(default=(0, 0), eq=False)
    kind: Kind = "text"


@frozen
class Query:
    """Conditions that must all hold; without any, everything matches."""

    conditions: tuple[Condition, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.conditions)


@frozen
class Order:
    """What to sort by.

    Numbers come before texts, each ascending or descending; what is missing or not finite comes
    last either way.
    """

    field: str
    key: str | None
    descending: bool
    kind: Kind = "text"

    def sorted(self, items: Iterable[T], get: Callable[[T], Getter]) -> list[T]:
        """Return *items* in this order; equal ones stay in the order in which they came."""
        numbers: list[tuple[float | int, T]] = []
        texts: list[tuple[str, T]] = []
        rest: list[T] = []
        for item in items:
            value = get(item)(self.field, self.key)
            if isinstance(value, datetime):
                value = stamp(value)
            exact = value if self.kind == "integer" else number(value)
            if exact is not None:
                numbers.append((exact, item))
            elif (text := text_of(value)) is not None:
                texts.append((text, item))
            else:
                rest.append(item)
        numbers.sort(key=operator.itemgetter(0), reverse=self.descending)  # reverse keeps ties in order
        texts.sort(key=operator.itemgetter(0), reverse=self.descending)
        return [item for _, item in numbers] + [item for _, item in texts] + rest


# --- Parsing ------------------------------------------------------------------------------------

_SPACE = r"[ \t\r\n]*"
_WORD = r"[A-Za-z_][A-Za-z0-9_]*"
_PART = r"[\w@/-]+"
_QUOTED_PART = r"`((?:[^`]|``)*)`"
_TEXT = r"'((?:[^']|'')*)'|\"((?:[^\"]|\"\")*)\""
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.])"
_OPERATOR = r"(?i:[=!<>~]+|(?:LIKE|ILIKE)\b)"
_TRY = {"==": "=", "<>": "!=", "=<": "<=", "=>": ">=", "=~": "~", "!~": "~", "~=": "~"}


def parse(text: str | None, fields: Fieldset = VERSION_FIELDS) -> Query:
    """Return the query that *text* says; None and blank text are the query that matches everything.

    Raises:
        InvalidQuery: it does not parse, names a field that is not there, or compares what cannot be
            compared; with the place in the text.
    """
    if text is None:
        return Query()
    reader = _Reader(_checked(text, "where="), fields)
    conditions: list[Condition] = []
    reader.skip()
    while not reader.done():
        if conditions:
            reader.conjunction()
        conditions.extend(reader.condition())
        if len(conditions) > MAX_CONDITIONS:
            reader.fail(f"More than {MAX_CONDITIONS} conditions.", at=(0, len(reader.text)))
        reader.skip()
    return Query(tuple(conditions))


def parse_order(text: str | None, fields: Fieldset = VERSION_FIELDS) -> Order | None:
    """Return the order that *text* says: a field, with a ``-`` before it for descending.

    Returns None for None.

    Raises:
        InvalidQuery: no such field, or one that has no order (``tags``, ``alias``).
    """
    if text is None:
        return None
    reader = _Reader(_checked(text, "order_by="), fields)
    reader.skip()
    descending = reader.text.startswith("-", reader.at)
    reader.at += descending
    start = reader.at
    name, key, kind = reader.field()
    if kind == "set":
        reader.fail(f"{name} holds several texts, which have no order.", at=(start, reader.at))
    reader.skip()
    if not reader.done():
        reader.fail(
            "order_by= takes one field.",
            "Write 'metrics.auc', or '-metrics.auc' for the highest first.",
            at=(reader.at, len(reader.text)),
        )
    return Order(name, key, descending, kind)


def check_limit(limit: object) -> int:
    """Return *limit* if it is a whole number from 1 to 10,000.

    Raises:
        InvalidQuery: it is anything else.
    """
    number_of = None if isinstance(limit, bool) else getattr(type(limit), "__index__", None)
    whole = int(number_of(limit)) if number_of else 0
    if not 1 <= whole <= MAX_LIMIT:
        raise InvalidQuery(
            f"limit= is {shown(limit)}; it must be a whole number from 1 to {MAX_LIMIT:,}.",
            hint="For everything, use the iter_… methods or .next().",
        )
    return whole


def stamp(moment: datetime) -> str:
    """Return an aware time as fixed-width UTC text, which sorts as the times do.

    Raises:
        ValueError: the time is naive. OverflowError: in UTC it lies outside of the years 1 to 9999.
    """
    if moment.tzinfo is None:
        raise ValueError("a time without a time zone")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _checked(text: object, what: str) -> str:
    if not isinstance(text, str):
        raise InvalidQuery(
            f"{what} is {shown(text)}, not text.", hint='Write for example where="metrics.auc >= 0.9".'
        )
    text = str.__str__(text)
    if len(text) > MAX_LENGTH:
        raise InvalidQuery(
            f"{what} has {len(text):,} characters; {MAX_LENGTH:,} are the most.",
            hint="Ask for more in Python, over the answer.",
            source=text,
            span=(0, 1),
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidQuery(
            f"{what} has half of a surrogate pair.", source=text, span=(error.start, error.start + 1)
        ) from None
    if "\0" in text:
        raise InvalidQuery(
            f"{what} has a NUL character.", source=text, span=(text.index("\0"), text.index("\0") + 1)
        )
    return text


class _Reader:
    """Reads one text from left to right, without recursion or backtracking."""

    __slots__ = ("at", "fields", "text")

    def __init__(self, text: str, fields: Fieldset) -> None:
        self.text = text
        self.fields = fields
        self.at = 0

    def fail(self, message: str, hint: str = "", at: tuple[int, int] | None = None) -> NoReturn:
        start, end = at or (self.at, self.word_end())
        raise InvalidQuery(message, hint=hint, source=self.text, span=(start, max(end, start + 1)))

    def word_end(self) -> int:
        match = self.match(r"\w+")
        return match.end() if match else self.at + 1

    def match(self, pattern: str) -> re.Match[str] | None:
        return re.compile(pattern).match(
            self.text, self.at
        )  # compiled once, when first asked: imports stay cheap

    def done(self) -> bool:
        return self.at >= len(self.text)

    def skip(self) -> None:
        match = self.match(_SPACE)
        self.at = match.end() if match else self.at

    def next_word(self) -> str:
        match = self.match(_WORD)
        return match.group().lower() if match else ""

    def conjunction(self) -> None:
        word = self.next_word()
        if word == "and":
            start = self.at
            self.at += len(word)
            self.skip()
            if self.done():
                self.fail("A condition is missing after 'and'.", at=(start, start + len(word)))
            return
        if word == "or":
            self.fail("'or' is not there yet.", "Ask twice, and join the answers in Python.")
        if self.text.startswith(("&", ","), self.at):
            self.fail("Conditions are joined by 'and'.")
        self.fail("Expected 'and' or the end.", "A quote inside text is doubled: 'O''Brien'.")

    def field(self) -> tuple[str, str | None, Kind]:
        start = self.at
        if self.text.startswith("(", self.at):
            self.fail("Parentheses are not there yet.", "Join conditions with 'and'.")
        word = self.next_word()
        if not word:
            self.fail("Expected a field.", f"For example {self.example()}.")
        written = self.text[start : start + len(word)]
        self.at += len(word)
        if self.text.startswith("(", self.at):
            self.fail("There are no functions here.", at=(start, self.at + 1))
        name = self.fields.synonyms.get(written, written)
        if name not in self.fields.kinds:
            self.unknown(written, start)
        kind = self.fields.kinds[name]
        key = self.key(start)
        if key is None and kind == "map":
            self.fail(f"{name} holds many values.", f"Say which: {name}.something", at=(start, self.at))
        if key is not None and kind != "map" and name != "tags":
            self.fail(f"{name} has no parts.", f"Write {name} alone.", at=(start, self.at))
        return name, key, kind

    def unknown(self, written: str, start: int) -> NoReturn:
        if written.lower() == "not":
            self.fail("'not' is not there yet.", "Use !=.", at=(start, self.at))
        known = [*self.fields.kinds, *self.fields.synonyms]
        close = nearest(written.lower(), known)
        hint = (
            f"Did you mean {' or '.join(close)}?" if close else f"There are: {', '.join(self.fields.kinds)}."
        )
        self.fail(f"{self.fields.of.capitalize()} have no field {shown(written)}.", hint, at=(start, self.at))

    def example(self) -> str:
        return "metrics.auc >= 0.9" if "metrics" in self.fields.kinds else "tags = 'crm'"

    def key(self, start: int) -> str | None:
        parts: list[str] = []
        while self.text.startswith(".", self.at):
            self.at += 1
            match = self.match(_PART)
            if match:
                parts.append(match.group())
            elif match := self.match(_QUOTED_PART):
                part = match.group(1).replace("``", "`")
                if not part or not part.isprintable() or "'" in part or '"' in part:
                    self.fail(
                        "A key between backquotes is not empty, and has no quotes or control characters.",
                        at=match.span(),
                    )
                parts.append(part)
            elif self.text.startswith("`", self.at):
                self.fail("This backquote is never closed.")
            else:
                self.fail(
                    "A key is missing or has a special character.", "Put it between backquotes: params.`a b`"
                )
            self.at = match.end()
        key = ".".join(parts)
        if len(key) > _MAX_KEY:
            self.fail(f"A key of {len(key):,} characters; {_MAX_KEY} are the most.", at=(start, self.at))
        return key or None

    def operator(self, name: str, kind: Kind) -> Op:
        match = self.match(_OPERATOR)
        if not match:
            word = self.next_word()
            if word in ("in", "not", "is", "between"):
                self.fail(f"'{word}' is not there yet.", "Use =, !=, <, <=, >, >=, ~, LIKE or ILIKE.")
            self.fail("Expected an operator.", "There are =, !=, <, <=, >, >=, ~ (contains), LIKE and ILIKE.")
        op = match.group().upper()
        if op not in _TEXT_OPS:
            hint = f"Write {_TRY[op]}." if op in _TRY else "There are =, !=, <, <=, >, >=, ~, LIKE and ILIKE."
            self.fail(f"There is no operator {op}.", hint, at=match.span())
        allowed = ("=", "!=") if name in self.fields.choices else _OPS[kind]
        if op not in allowed:
            self.fail(
                f"{name} cannot be compared with {op}.", f"It takes {', '.join(allowed)}.", at=match.span()
            )
        self.at = match.end()
        return op  # type: ignore[return-value]

    def literal(self) -> str | int | float | bool:
        if self.done():
            self.fail("A value is missing.", "Write text as 'text', or a number.", at=(self.at, self.at))
        if match := self.match(_TEXT):
            self.at = match.end()
            single, double = match.groups()
            return single.replace("''", "'") if single is not None else double.replace('""', '"')
        if match := self.match(_NUMBER):
            value: int | float
            written = match.group()
            if len(written) > 400 or not math.isfinite(float(written)):
                self.fail("This number is beyond the range of floats.", at=match.span())
            value = int(written) if written.lstrip("+-").isdigit() else float(written)
            self.at = match.end()
            return value
        word = self.next_word()
        if word in ("true", "false"):
            self.at += len(word)
            return word == "true"
        if word in ("nan", "inf", "infinity"):
            self.fail("Values that are not finite match no comparison.", "Compare with a finite number.")
        if word in ("null", "none"):
            self.fail("A test for what is missing is not there yet.")
        if self.text[self.at] in "'\"":
            self.fail("This quote is never closed.")
        if self.text.startswith("(", self.at):
            self.fail("Parentheses are not there yet.")
        return self.fail("Expected a value.", "Text stands between quotes: 'text'.")

    def condition(self) -> list[Condition]:
        start = self.at
        name, key, kind = self.field()
        self.skip()
        op = self.operator(name, kind)
        self.skip()
        value_at = self.at
        literal = self.literal()
        span, value_span = (start, self.at), (value_at, self.at)
        if kind == "time":
            return self.times(name, op, literal, span, value_span)
        value = self.fitting(name, kind, op, literal, value_span)
        if op in ("LIKE", "ILIKE"):
            self.pattern(str(value), value_span)
        if name == "tags" and key is not None:  # tags.team = 'risk'
            value, op, key = *_prefixed(key, op, str(value)), None
        return [Condition(name, key, op, value, span, kind)]

    def fitting(
        self, name: str, kind: Kind, op: Op, value: str | float | bool, span: tuple[int, int]
    ) -> str | int | float | bool:
        """Return the literal as the value of a condition on such a field; fail if they cannot be compared."""
        if kind == "flag":
            if not isinstance(value, bool):
                self.fail(f"{name} is true or false.", f"Write {name} = true", at=span)
            return value
        if op in ("~", "LIKE", "ILIKE") and not isinstance(value, str):
            self.fail(f"{op} compares with text.", "Put it between quotes.", at=span)
        if kind == "map":
            if isinstance(value, bool) and op not in ("=", "!="):
                self.fail("true and false have no order.", "Use = or !=.", at=span)
            return value if isinstance(value, str) else float(value)
        if kind in ("integer", "number"):
            if isinstance(value, (str, bool)):
                self.fail(f"{name} is a number.", "Write it without quotes.", at=span)
            if kind == "number":
                return float(value)
            if value != int(value) or not -(2**63) <= value < 2**63:
                self.fail(f"{name} is a whole number below 2^63.", at=span)
            return int(value)
        if not isinstance(value, str):
            self.fail(f"{name} is text.", "Put the value between quotes.", at=span)
        choices = self.fields.choices.get(name)
        if choices and value not in choices:
            self.fail(f"{name} is one of {', '.join(choices)}.", at=span)
        return value

    def pattern(self, pattern: str, span: tuple[int, int]) -> None:
        if re.sub(r"\\.", "", pattern, flags=re.DOTALL).endswith("\\"):
            self.fail("The pattern ends with a lone backslash.", "Double it.", at=span)
        if sum(part == "%" for part in _wildcards(pattern)) > MAX_WILDCARDS:
            self.fail(f"More than {MAX_WILDCARDS} % in a pattern.", at=span)

    def times(
        self, name: str, op: Op, value: object, span: tuple[int, int], value_span: tuple[int, int]
    ) -> list[Condition]:
        if not isinstance(value, str):
            self.fail(
                f"{name} is a time.", "Write '2026-03-01' or '2026-03-01T12:00:00+02:00'.", at=value_span
            )
        try:
            if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
                day = date.fromisoformat(value)
                first = stamp(datetime.combine(day, time.min, UTC))
                last = stamp(datetime.combine(day, time.max, UTC))
            else:
                moment = datetime.fromisoformat(value)
                first = last = stamp(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
        except (ValueError, OverflowError):
            self.fail("This is no time.", "Write '2026-03-01' or '2026-03-01T12:00:00+02:00'.", at=value_span)
        if op == "=" and first != last:
            return [
                Condition(name, None, ">=", first, span, "time"),
                Condition(name, None, "<=", last, span, "time"),
            ]
        return [Condition(name, None, op, last if op in (">", "<=") else first, span, "time")]


def _prefixed(key: str, op: Op, value: str) -> tuple[str, Op]:
    if op in ("=", "!="):
        return f"{key}:{value}", op
    literal = re.sub(r"([\\%_])", r"\\\1", key)
    if op == "~":
        return f"{literal}:%" + re.sub(r"([\\%_])", r"\\\1", value) + "%", "LIKE"
    return f"{literal}:{value}", op


# --- Meaning -----------------------------------------------------------------------------------

_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "~": operator.contains,
    "LIKE": lambda text, pattern: like(text, pattern),
    "ILIKE": lambda text, pattern: like(text, pattern, ignore_case=True),
}


def matches(query: Query, get: Getter) -> bool:
    """Return whether all conditions hold for the thing that *get* reads: the definition of the language."""
    return all(_holds(condition, get(condition.field, condition.key)) for condition in query.conditions)


def _holds(condition: Condition, value: Any) -> bool:
    compare, wanted = _COMPARE[condition.op], condition.value
    if condition.kind == "set":
        if condition.op == "!=":
            return wanted not in (value or ())
        return any(compare(one, wanted) for one in value or ())
    if condition.kind == "map":
        value = text_of(value) if isinstance(wanted, str) else number(value)
    elif condition.kind == "time" and value is not None:
        value = stamp(value)
    return value is not None and compare(value, wanted)


def getter(thing: Any) -> Getter:
    """Return a `Getter` for a ``Model`` or a ``ModelVersion``.

    A field of the query that the value lacks is read as "not there".
    """
    names = {"alias": "aliases", "project": "projects"}

    def get(field_name: str, key: str | None) -> Any:
        value = getattr(thing, names.get(field_name, field_name), None)
        if field_name == "status" and value is None:  # of a model: each status that a version has
            return [status for status, count in thing.counts.items() if count]
        if key is None:
            return value
        if not isinstance(value, Mapping):
            return None
        return dict(leaves(value)).get(key)

    return get


_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def _wildcards(pattern: str) -> list[str | tuple[str]]:
    """Return the pattern in parts: "%", "_", or a literal character in a tuple. Repeated % count once."""
    parts: list[str | tuple[str]] = []
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            parts.append((next(characters, "\\"),))
        elif character == "%":
            if not parts or parts[-1] != "%":
                parts.append("%")
        else:
            parts.append("_" if character == "_" else (character,))
    return parts


def like(text: str, pattern: str, *, ignore_case: bool = False) -> bool:
    r"""Return whether *text* as a whole fits *pattern*: ``%`` any text, ``_`` one character, ``\`` escapes.

    Takes at most time proportional to ``len(text) * len(pattern)``. *ignore_case* ignores the case
    of A to Z only, which is the same on every database.
    """
    if ignore_case:
        text, pattern = text.translate(_ASCII_LOWER), pattern.translate(_ASCII_LOWER)
    parts = _wildcards(pattern)
    at = part = 0
    star, resume = -1, 0
    while at < len(text):
        current = parts[part] if part < len(parts) else None
        if current == "%":
            star, resume = part, at
            part += 1
        elif current is not None and (current == "_" or current == (text[at],)):
            at += 1
            part += 1
        elif star >= 0:  # let the last % take one character more
            resume += 1
            at, part = resume, star + 1
        else:
            return False
    return all(rest == "%" for rest in parts[part:])
