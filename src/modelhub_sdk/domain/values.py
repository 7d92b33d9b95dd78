"""What metrics, parameters and fields hold: plain, frozen, JSON-able values.

A `Value` is None, a bool, an int, a float, a str, a tuple of values, a `Frozen` mapping of text to
values, or an `Opaque` (the marked text of an object that is none of these). `normalise` makes them
from what training code has; `to_json` and `from_json` are exact inverses on them.

What becomes what:

===============================================  =====================================================
bool, int, float, str, None                      themselves; integers up to 4,300 digits, NaN and ±inf kept
subclasses of these, enum members                the plain value
numpy, torch, jax … scalars                      the number (``.item()``); arrays become tuples
Decimal, Fraction                                an int if whole, else the nearest float
list, tuple, range and other sequences           a tuple
mappings, dataclasses                            in metrics and parameters ``a.b`` keys; in fields and
                                                 inside sequences a `Frozen`
integer keys                                     text
paths, dates, functions, any other object        `Opaque`: its type and its text, without memory addresses
complex, bytes, sets, NaN of Decimal, other      `InvalidDocument`, which names the key
keys, lone surrogates, NUL, what is too large
===============================================  =====================================================
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from enum import Enum
from os import PathLike
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NoReturn, TypeAlias, Union

from attrs import frozen

from modelhub_sdk.errors import InvalidDocument, shown

__all__ = [
    "MAX_DEPTH",
    "MAX_DIGITS",
    "MAX_ITEMS",
    "MAX_KEY",
    "MAX_TEXT",
    "MAX_TOTAL",
    "Frozen",
    "Opaque",
    "Value",
    "from_json",
    "leaves",
    "normalise",
    "normalise_fields",
    "number",
    "text_of",
    "to_json",
]

MAX_KEY = 250
"""Characters in one key, after flattening."""
MAX_TEXT = 100_000
"""Characters in one text."""
MAX_TOTAL = 400_000
"""Characters in one mapping, keys and texts together."""
MAX_ITEMS = 10_000
"""Values in one mapping, those inside sequences and nested mappings included."""
MAX_DEPTH = 32
"""Levels of nesting."""
MAX_DIGITS = 4_300
"""Decimal digits in an integer: what Python itself prints."""

_OPAQUE_TEXT = 1_000
_TOO_BIG = 10**MAX_DIGITS
_PLAIN_JSON_BITS = 2_000  # about 600 digits: Python prints these however it is configured
_SMALL = 1 << 63
_NAN = math.nan  # the one NaN in values: containers compare by identity first, so equal values stay equal


class Frozen(dict[Any, Any]):
    """A read-only dict: equal to a dict of the same content, picklable, hashable if its values are.

    ``frozen | other`` gives a plain dict. Every method that would change it raises TypeError.
    """

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("this mapping is read-only; make a dict of it first: dict(value)")

    __setitem__ = __delitem__ = _refuse
    __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __copy__(self) -> Frozen:
        return self

    def copy(self) -> Frozen:
        """Return the mapping itself: it never changes."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (dict(self),)


def _rebuild(content: dict[str, Any]) -> Frozen:
    return Frozen({key: _one_nan(value) for key, value in content.items()})


def _one_nan(value: Any) -> Any:
    if type(value) is float:
        return _NAN if math.isnan(value) else value
    if type(value) is tuple:
        return tuple(map(_one_nan, value))
    return value


@frozen
class Opaque:
    """Marked text: what an object that is no plain value said of itself.

    `type` is its type's qualified name (``torch.nn.modules.activation.ReLU``), `text` its text, at
    most 1,000 characters.
    """

    type: str
    text: str

    def __str__(self) -> str:
        return self.text


Value: TypeAlias = Union[bool, int, float, str, Opaque, "tuple[Value, ...]", Frozen, None]
"""A plain value; see the module."""


def normalise(mapping: Mapping[Any, Any] | None, what: str = "metrics") -> Frozen:
    """Return *mapping* as plain values under flat text keys; None gives an empty mapping.

    Nested mappings become ``a.b`` (an empty one stays, as an empty `Frozen`). *what* names the
    mapping in errors.

    Raises:
        InvalidDocument: a key or value that cannot be kept, two keys that become one, or too much.
    """
    if mapping is None:
        return Frozen()
    if type(mapping) is dict or type(mapping) is Frozen:
        # The hot path of a registration: plain values under plain keys need no copying and no recursion.
        plain = Frozen(mapping)
        isnan = math.isnan
        if len(plain) <= 300:
            for key, value in plain.items():
                if (
                    type(key) is not str
                    or not key.isascii()
                    or not key.isprintable()
                    or not 0 < len(key) <= MAX_KEY
                ):
                    break
                kind = type(value)
                if kind is float:
                    if isnan(value):
                        break
                elif kind is int:
                    if not -_SMALL <= value < _SMALL:
                        break
                elif kind is str:
                    if len(value) > 1_000 or not value.isascii() or not value.isprintable():
                        break
                elif kind is not bool and value is not None:
                    break
            else:
                return plain
    return _Reader(what).read(mapping, flat=True)


def normalise_fields(mapping: Mapping[Any, Any] | None, what: str = "fields") -> dict[str, Value]:
    """Return *mapping* with plain values; nested mappings stay nested, as `Frozen`.

    A None at the top level is kept: in an edit it means "remove this key".

    Raises:
        InvalidDocument: as for `normalise`.
    """
    if mapping is None:
        return {}
    return dict(_Reader(what).read(mapping, flat=False))


def number(value: object) -> float | None:
    """Return what comparisons and the index see of *value* as a number: a finite float, or None.

    Bools are 1.0 and 0.0, integers their nearest float. NaN, ±inf, integers beyond the range of
    floats and everything else are None.
    """
    if isinstance(value, (int, float)):
        try:
            result = float(value)
        except OverflowError:
            return None
        return result if math.isfinite(result) else None
    return None


def text_of(value: object) -> str | None:
    """Return what comparisons and the index see of *value* as text: a str, an Opaque's text, else None."""
    if isinstance(value, str):
        return value
    return value.text if isinstance(value, Opaque) else None


def leaves(mapping: Mapping[str, Value]) -> Iterator[tuple[str, Value]]:
    """Yield ``(key, value)`` with nested mappings as ``a.b``: how fields are indexed and searched.

    Where two would have one key, only the first is yielded, a literal one before a nested one.
    """
    seen = {key for key, value in mapping.items() if not isinstance(value, Mapping)}
    stack = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            stack.append((key, value))
        else:
            yield key, value
    while stack:
        prefix, inner = stack.pop(0)
        for key, value in inner.items():
            full = f"{prefix}.{key}"
            if isinstance(value, Mapping):
                stack.append((full, value))
            elif full not in seen:
                seen.add(full)
                yield full, value


# --- JSON ---------------------------------------------------------------------------------------


def to_json(value: Value | Mapping[str, Value]) -> Any:
    """Return *value* as an object that `json.dumps` writes without loss, with ``allow_nan=False``.

    What JSON lacks is an object with one ``$`` key: ``{"$float": "NaN"}`` (or ``"Infinity"``,
    ``"-Infinity"``), ``{"$int": "0x…"}`` beyond 2,000 bits, ``{"$text": {"type": …, "text": …}}``,
    and ``{"$map": {…}}`` around a mapping that has ``$`` keys of its own.

    Raises:
        InvalidDocument: *value* is no `Value`.
    """
    kind = type(value)
    if value is None or kind is str or kind is bool:
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": _float_name(value)}  # type: ignore[arg-type]
    if kind is int:
        return value if value.bit_length() <= _PLAIN_JSON_BITS else {"$int": hex(value)}  # type: ignore[union-attr,arg-type]
    if isinstance(value, Mapping):
        content = {key: to_json(item) for key, item in value.items()}
        return {"$map": content} if any(key.startswith("$") for key in content) else content
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if isinstance(value, Opaque):
        return {"$text": {"type": value.type, "text": value.text}}
    raise InvalidDocument(f"{shown(value)} is not a plain value.", hint="Pass it through normalise() first.")


def from_json(obj: Any) -> Value:
    """Return the value that `to_json` made *obj* of; mappings come back as `Frozen`, lists as tuples.

    An unknown ``$`` tag (a later release's) comes back as an `Opaque`.

    Raises:
        InvalidDocument: a known tag with a content that `to_json` never writes, or absurd nesting.
    """
    return _decode(obj, 0)


def _decode(obj: Any, depth: int) -> Value:
    kind = type(obj)
    if kind is float:
        return _NAN if math.isnan(obj) else obj
    if obj is None or kind is str or kind is int or kind is bool:
        return obj  # type: ignore[no-any-return]
    if depth > 2 * MAX_DEPTH:  # twice: each level may carry a $map
        raise InvalidDocument(f"A stored value is nested deeper than {MAX_DEPTH} levels.")
    if isinstance(obj, (list, tuple)):
        return tuple(_decode(item, depth + 1) for item in obj)
    if isinstance(obj, dict):
        if not any(key.startswith("$") for key in obj):
            return Frozen({key: _decode(item, depth + 1) for key, item in obj.items()})
        if len(obj) == 1:
            return _untag(*next(iter(obj.items())), depth)
    raise InvalidDocument(f"A stored value is {shown(obj)}, which this library never writes.")


def _untag(tag: str, content: Any, depth: int) -> Value:
    if tag == "$float" and isinstance(content, str) and content in _FLOATS:
        return _FLOATS[content]
    if tag == "$int" and isinstance(content, str) and re.fullmatch(r"-?0x[0-9a-f]{1,3600}", content):
        return int(content, 16)
    if tag == "$map" and isinstance(content, dict):
        return Frozen({key: _decode(item, depth + 1) for key, item in content.items()})
    if tag == "$text" and isinstance(content, dict) and content.keys() == {"type", "text"}:
        kind, text = content["type"], content["text"]
        if isinstance(kind, str) and isinstance(text, str):
            return Opaque(kind, text)
    if tag in ("$float", "$int", "$map", "$text"):
        raise InvalidDocument(f"A stored value has a malformed {tag}.")
    return Opaque(tag, content if isinstance(content, str) else shown(content))


_FLOATS = {"NaN": _NAN, "Infinity": math.inf, "-Infinity": -math.inf}


def _float_name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


# --- Reading what training code has -----------------------------------------------------------------


class _Reader:
    """One normalisation: counts items and characters, names keys in errors."""

    __slots__ = ("characters", "items", "what")

    def __init__(self, what: str) -> None:
        self.what = what
        self.items = 0
        self.characters = 0

    def read(self, mapping: Any, *, flat: bool) -> Frozen:
        try:
            if not flat:
                return self.mapping(mapping, "", 1)
            out: dict[str, Value] = {}
            self.flatten(mapping, "", out, 1)
            return Frozen(out)
        except InvalidDocument:
            raise
        except Exception as error:  # noqa: BLE001  # user code runs in here: __len__, __iter__, even __class__ may raise
            self.refuse("", f"holds an object that cannot be read: {type(error).__name__} was raised.")

    def refuse(self, path: str, fault: str, hint: str = "") -> NoReturn:
        where = f"{self.what}: the value of {shown(path)}" if path else self.what
        message = f"{where} {fault}"
        raise InvalidDocument(message, hint=hint, problems=(message,))

    def count(self, path: str, items: int, depth: int) -> None:
        self.items += items
        if self.items > MAX_ITEMS:
            self.refuse(
                path.partition(".")[0] if depth > 1 else "",
                f"brings it to more than {MAX_ITEMS:,} values."
                if depth > 1
                else f"has more than {MAX_ITEMS:,} values.",
                "Write large data to a file and register that.",
            )
        if depth > MAX_DEPTH:
            self.refuse(
                path.partition(".")[0], f"is nested deeper than {MAX_DEPTH} levels, or contains itself."
            )

    def text(self, text: str, path: str, limit: int, noun: str) -> str:
        text = str.__str__(text)  # a subclass may say something else of itself later
        self.characters += len(text)
        if len(text) > limit:
            self.refuse(
                path,
                f"has {noun} of {len(text):,} characters; {limit:,} are the most.",
                "Register it as a file.",
            )
        if self.characters > MAX_TOTAL:
            self.refuse(
                "", f"has more than {MAX_TOTAL:,} characters of text.", "Register long text as a file."
            )
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                self.refuse(
                    path,
                    f"has {noun} with half of a surrogate pair: {shown(text)}.",
                    "It is no valid Unicode.",
                )
        if "\0" in text:
            self.refuse(path, f"has {noun} with a NUL character: {shown(text)}.")
        return text

    def key(self, key: Any, prefix: str) -> str:
        if isinstance(key, Enum):
            key = key.value
        if not isinstance(key, str):
            if not isinstance(key, bool) and hasattr(type(key), "__index__"):
                key = self.integer(int(key.__index__()), prefix)
                key = str(key)
            else:
                self.refuse(prefix, f"has the key {shown(key)}; keys are text or integers.", "Use text keys.")
        if not key:
            self.refuse(prefix, "has an empty key.", "Give it a name.")
        full = f"{prefix}.{key}" if prefix else key
        return self.text(full, full[:MAX_KEY], MAX_KEY, "a key")

    def pairs(self, mapping: Any, path: str, depth: int) -> list[tuple[Any, Any]]:
        if not isinstance(mapping, Mapping):
            self.refuse(
                path, f"is {shown(mapping)}, not a mapping.", f"Pass a dict: {self.what}={{'name': value}}."
            )
        self.count(path, len(mapping), depth)
        try:
            return list(dict(mapping).items())
        except Exception as error:  # noqa: BLE001  # a user's own Mapping
            self.refuse(path, f"cannot be read: {type(error).__name__}.")

    def flatten(self, mapping: Any, prefix: str, out: dict[str, Value], depth: int) -> None:
        for raw, item in self.pairs(mapping, prefix, depth):
            key = self.key(raw, prefix)
            item = _as_mapping(item)
            if isinstance(item, Mapping) and item:
                self.flatten(item, key, out, depth + 1)
                continue
            if key in out:
                self.refuse("", f"has two values for the key {shown(key)}.", "Rename one of them.")
            out[key] = self.value(item, key, depth + 1)

    def mapping(self, mapping: Any, path: str, depth: int) -> Frozen:
        out: dict[str, Value] = {}
        for raw, item in self.pairs(mapping, path, depth):
            key = self.key(raw, "")
            if key in out:
                self.refuse(path, f"has two values for the key {shown(key)}.", "Rename one of them.")
            out[key] = self.value(item, f"{path}.{key}" if path else key, depth + 1)
        return Frozen(out)

    def sequence(self, items: Iterable[Any], length: int, path: str, depth: int) -> tuple[Value, ...]:
        self.count(path, length, depth)
        return tuple([self.value(item, path, depth + 1) for item in items])

    def integer(self, value: int, path: str) -> int:
        if not -_TOO_BIG < value < _TOO_BIG:
            self.refuse(path, f"is {shown(value)}; {MAX_DIGITS:,} digits are the most.", "Keep it as text.")
        return value

    def value(self, value: Any, path: str, depth: int) -> Value:
        if isinstance(value, Enum):
            value = value.value
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, float):
            value = float.__float__(value)
            return _NAN if math.isnan(value) else value
        if isinstance(value, int):
            return self.integer(int.__int__(value), path)
        if isinstance(value, str):
            return self.text(value, path, MAX_TEXT, "a text")
        if isinstance(value, (list, tuple)):
            return self.sequence(value, len(value), path, depth)
        if isinstance(value, Opaque):
            return Opaque(
                self.text(value.type, path, _OPAQUE_TEXT, "a type"),
                self.text(value.text, path, MAX_TEXT, "a text"),
            )
        value = _as_mapping(value)
        if isinstance(value, Mapping):
            return self.mapping(value, path, depth)
        if isinstance(value, complex):
            self.refuse(path, "is a complex number.", "Keep its real and imaginary parts as two values.")
        if isinstance(value, (bytes, bytearray, memoryview)):
            self.refuse(path, "is bytes.", "Decode it to text, or register it as a file.")
        if isinstance(value, AbstractSet):
            self.refuse(path, "is a set, which has no order.", "Pass sorted(value).")
        if hasattr(type(value), "dtype") and hasattr(type(value), "shape"):
            return self.array(value, path, depth)
        if isinstance(value, Sequence):
            return self.sequence(value, len(value), path, depth)
        from decimal import Decimal  # here, because importing this package should stay cheap
        from fractions import Fraction

        if isinstance(value, (Decimal, Fraction)):
            return self.exact(value, path)
        return self.opaque(value, path)

    def exact(self, value: Any, path: str) -> Value:
        if hasattr(value, "is_finite"):  # a Decimal
            if not value.is_finite():
                self.refuse(
                    path,
                    "is a Decimal that is not a number.",
                    "Use float('nan') if that is what was measured.",
                )
            if value and abs(value.adjusted()) >= MAX_DIGITS:
                self.refuse(path, f"is a Decimal of more than {MAX_DIGITS:,} digits.", "Keep it as text.")
        if value == value.__trunc__():
            return self.integer(value.__trunc__(), path)
        try:
            return float(value)
        except OverflowError:
            self.refuse(path, f"is a {type(value).__name__} beyond the range of floats.", "Keep it as text.")

    def array(self, value: Any, path: str, depth: int) -> Value:
        """Read a scalar or array of numpy, torch, jax or their like; none of them is imported here."""
        self.count(path, 0, depth + 1)  # an object array may contain itself
        if type(value).__name__ == "MaskedConstant":
            self.refuse(path, "is masked: it has no value.", "Leave it out, or use None.")
        plain: Any
        try:
            shape = tuple(int(n) for n in value.shape)
            if getattr(value.dtype, "kind", "") in (
                "m",
                "M",
            ):  # times: .item() would be a bare count of nanoseconds
                plain = Opaque(_type_name(value), str(value)[:_OPAQUE_TEXT]) if shape == () else None
            elif math.prod(shape) > MAX_ITEMS:
                plain = None
            elif shape == ():
                plain = value.item() if hasattr(value, "item") else value.numpy().item()
                if hasattr(type(plain), "dtype") and not isinstance(plain, (int, float, str)):  # longdouble
                    plain = float(plain)
            else:
                plain = value.tolist() if hasattr(value, "tolist") else value.numpy().tolist()
        except Exception as error:  # noqa: BLE001  # whatever the array library raises
            self.refuse(path, f"({_type_name(value)}) could not be read as numbers: {type(error).__name__}.")
        if plain is None:
            self.refuse(
                path,
                f"is an array of shape {shape} ({_type_name(value)}).",
                "Write arrays to a file and register that; metrics and parameters are for numbers.",
            )
        return self.value(plain, path, depth + 1)

    def opaque(self, value: Any, path: str) -> Opaque:
        try:
            if isinstance(value, (datetime, date, time)):
                text = value.isoformat()
            elif isinstance(value, (timedelta, PathLike)):
                text = str(value)
            elif isinstance(value, (type, FunctionType, BuiltinFunctionType, MethodType)):
                text = f"{_public_module(value)}.{value.__qualname__}"
            else:
                # Without the address, or the same parameters would look different in every process.
                text = re.sub(r" at 0x[0-9A-Fa-f]+", "", repr(value))
        except Exception as error:  # noqa: BLE001  # a user's own __repr__
            self.refuse(
                path,
                f"({_type_name(value)}) cannot say what it is: its repr raised {type(error).__name__}.",
                "Pass a number, text, a list or a dict.",
            )
        if len(text) > _OPAQUE_TEXT:
            text = text[: _OPAQUE_TEXT - 1] + "…"
        text = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
        self.characters += len(text)
        return Opaque(_type_name(value), text)


def _type_name(value: object) -> str:
    kind = type(value)
    module = _public_module(kind)
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _public_module(value: Any) -> str:
    """Return the module that users import *value* from: ``pathlib``, where Python 3.13 says ``pathlib._local``."""
    module = str(value.__module__)
    parent, _, last = module.rpartition(".")
    public = parent and last.startswith("_") and not last.startswith("__")
    if public and getattr(sys.modules.get(parent), value.__qualname__, None) is value:
        return parent
    return module


def _as_mapping(value: Any) -> Any:
    """Return a dataclass instance as the mapping of its fields, anything else as it is."""
    fields = getattr(type(value), "__dataclass_fields__", None)
    if isinstance(fields, dict) and not isinstance(value, Mapping):
        return {name: getattr(value, name) for name in fields if hasattr(value, name)}
    return value
