"""Values -> plain dicts, rows, data frames, ``.csv`` and ``.json``."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import attrs

from modelhub_sdk.domain.compare import Absent, Comparison
from modelhub_sdk.domain.entities import File
from modelhub_sdk.domain.values import Opaque, leaves
from modelhub_sdk.errors import InvalidName, MissingExtra, StoreUnavailable, shown

__all__ = ["comparison_to_pandas", "plain", "rows", "save", "to_csv", "to_dicts", "to_json", "to_pandas"]


def plain(value: Any) -> Any:
    """Return *value* as dicts, lists and scalars only.

    Frozen values become dicts of their fields, tuples lists, times ISO 8601 text, marked text its
    text; keys become text. Integers and floats stay themselves, NaN and infinities too.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, Opaque):
        return value.text
    if isinstance(value, Absent):
        return None
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if attrs.has(type(value)):
        return {name: plain(getattr(value, name)) for name in _names(value)}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def to_dicts(items: Iterable[Any]) -> list[dict[str, Any]]:
    """Return one plain dict for each item; an item that has no fields becomes ``{"value": item}``."""
    result = []
    for item in items:
        dictionary = plain(item)
        result.append(dictionary if isinstance(dictionary, dict) else {"value": dictionary})
    return result


def rows(items: Iterable[Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns, in order of first appearance, and one flat dict for each item.

    Mappings become ``metrics.auc`` columns, lists stay lists of plain values, times stay datetimes.
    """
    columns: dict[str, None] = {}
    table = []
    for item in items:
        row = dict(_cells(item))
        table.append(row)
        columns.update(dict.fromkeys(row))
    return list(columns), table


def to_pandas(items: Iterable[Any]) -> Any:
    """Return a ``pandas.DataFrame`` with the `rows` of *items*; integers keep their exact value.

    Raises:
        MissingExtra: pandas is not installed.
    """
    pandas = _pandas()
    columns, table = rows(items)
    return pandas.DataFrame({name: _series(pandas, [row.get(name) for row in table]) for name in columns})


def comparison_to_pandas(comparison: Comparison) -> Any:
    """Return a ``pandas.DataFrame``: a row for each thing compared, a column for each version.

    Raises:
        MissingExtra: pandas is not installed.
    """
    pandas = _pandas()
    index, cells = [], []
    for section, section_rows in comparison.sections.items():
        for row in section_rows:
            index.append((section, row.name))
            cells.append([cell.digest if isinstance(cell, File) else _native(cell) for cell in row.cells])
    return pandas.DataFrame(
        cells,
        index=pandas.MultiIndex.from_tuples(index, names=["section", "name"]),
        columns=list(comparison.labels),
        dtype=object,
    )


def to_json(items: Iterable[Any]) -> str:
    """Return the plain dicts of *items* as a JSON list.

    JSON has no NaN and no infinities: they are the texts "NaN", "Infinity" and "-Infinity".
    """
    return json.dumps(_finite(to_dicts(items)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(items: Iterable[Any]) -> str:
    """Return the `rows` of *items* as comma-separated values, with a line of column names.

    Nothing is an empty cell, empty text is ``""``, lists and marked text are JSON and text. A text
    that a spreadsheet would run as a formula (it begins with ``=``, ``+``, ``-``, ``@`` …) gets an
    apostrophe before it; numbers do not.
    """
    columns, table = rows(items)
    lines = [",".join(_csv_text(name) for name in columns)]
    # A line without any character would be no line: in a table of one column nothing is "" too.
    lines += [",".join(_csv(row.get(name)) for name in columns) or '""' for row in table]
    return "\n".join(lines) + "\n"


def save(items: Iterable[Any], path: str | os.PathLike[str]) -> None:
    """Write *items* to *path* as UTF-8: ``.csv`` or ``.json`` by its ending. All is written or nothing.

    Raises:
        InvalidName: another ending.
        StoreUnavailable: the disk refused.
    """
    target = Path(path)
    writer = {".csv": to_csv, ".json": to_json}.get(target.suffix.lower())
    if writer is None:
        raise InvalidName(
            f"Cannot tell a format from {shown(target.name)}.", hint="End it with .csv or .json."
        )
    content = writer(items).encode()
    try:
        _write(Path(os.path.realpath(target)), content)
    except OSError as error:
        raise StoreUnavailable(
            f"Could not write {shown(str(target))}: {error.strerror or type(error).__name__}.",
            hint="Nothing was written; choose another place.",
        ) from error


def _write(target: Path, content: bytes) -> None:
    if target.exists() and not target.is_file():  # a pipe or /dev/stdout cannot be replaced
        target.write_bytes(content)
        return
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:50]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, _usual_mode(target))
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _usual_mode(target: Path) -> int:
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return 0o666 & ~mask


def _names(value: Any) -> Iterator[str]:
    return (attribute.name for attribute in attrs.fields(type(value)) if not attribute.name.startswith("_"))


def _cells(item: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(item, Mapping):
        pairs: Iterable[tuple[str, Any]] = ((str(key), value) for key, value in item.items())
    elif attrs.has(type(item)):
        pairs = ((name, getattr(item, name)) for name in _names(item))
    else:
        pairs = [("value", item)]
    for name, value in pairs:
        if isinstance(value, Mapping):
            for key, leaf in leaves({str(key): leaf for key, leaf in value.items()}):
                yield f"{name}.{key}", _native(leaf)
        else:
            yield name, _native(value)


def _native(value: Any) -> Any:
    return value if isinstance(value, (datetime, date)) else plain(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return _special(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def _special(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


_FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\uff1d",
    "\uff0b",
    "\uff0d",
    "\uff20",
)  # spreadsheets read the full-width twins too


def _csv(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else _special(value)
    if isinstance(value, int):
        return json.dumps(value)
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, (list, dict)):
        value = json.dumps(_finite(value), ensure_ascii=False)
    return _csv_text(str(value))


def _csv_text(text: str) -> str:
    # Spaces and control characters before the sign do not stop a spreadsheet; a tab or return may start one.
    if text.lstrip().lstrip("\ufeff").startswith(_FORMULA) or text.startswith(("\t", "\r", "\n")):
        text = "'" + text
    if not text or any(character in text for character in ',"\r\n;\t') or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise MissingExtra(
            "to_pandas() needs pandas, which is not installed.",
            hint="pip install 'modelhub-sdk[pandas]'",
            extra="pandas",
        ) from error
    return pandas


def _series(pandas: Any, cells: list[Any]) -> Any:
    # pandas would make floats of integers beside a gap, and lose what lies beyond 2^53.
    whole = [cell for cell in cells if isinstance(cell, int) and not isinstance(cell, bool)]
    given = sum(cell is not None for cell in cells)
    if whole and len(whole) == given:
        fits = all(-(2**63) <= cell < 2**63 for cell in whole)
        dtype = ("int64" if given == len(cells) else "Int64") if fits else object
        return pandas.Series(cells, dtype=dtype)
    if any(abs(cell) > 2**53 for cell in whole):
        return pandas.Series(cells, dtype=object)
    return pandas.Series(cells) if given else pandas.Series(cells, dtype=object)
