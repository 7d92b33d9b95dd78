"""The manifest: which files make a version, as canonical bytes with one digest.

A manifest is a JSON list with one object per file, sorted by path in code point order::

    [{"algorithm":"sha256","digest":"<64 hex>","name":"weights/model.bin","size":1024}]

It is written as RFC 8785 does (no spaces, keys in order, UTF-8), so equal files give equal bytes.
Apart from ``size`` an object is a resource descriptor of the OpenSSF model-signing format: names,
order and digests are what a signature in that format covers, and signing needs no second reading.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from modelhub_sdk.domain import stored
from modelhub_sdk.domain.entities import File
from modelhub_sdk.domain.names import check_path, check_paths
from modelhub_sdk.errors import InvalidDocument, InvalidName, shown

MAX_FILES = 1_000_000
"""More files than this are refused: in a version, and in a manifest that is read."""

MAX_SIZE = stored.MAX_INT
"""The largest size of one file, in bytes."""

_KEYS = {"algorithm", "digest", "name", "size"}


def ordered(files: Iterable[File]) -> tuple[File, ...]:
    """Return *files* in the manifest's order: by path, code point by code point."""
    return tuple(sorted(files, key=lambda f: f.path))


def canonical(files: Iterable[File]) -> bytes:
    """Return the manifest of *files* as canonical bytes; their order does not matter."""
    rows = [
        {"algorithm": "sha256", "digest": f.digest.removeprefix("sha256:"), "name": f.path, "size": f.size}
        for f in ordered(files)
    ]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def digest(files: Iterable[File]) -> str:
    """Return the digest of the manifest of *files*, ``sha256:<hex>``."""
    return "sha256:" + hashlib.sha256(canonical(files)).hexdigest()


def resources(files: Iterable[File]) -> list[dict[str, str]]:
    """Return *files* as the ``resources`` list of the model-signing format (which has no sizes)."""
    return [
        {"algorithm": "sha256", "digest": f.digest.removeprefix("sha256:"), "name": f.path}
        for f in ordered(files)
    ]


def is_digest(text: object) -> bool:
    """Return whether *text* is ``sha256:`` and 64 lower-case hex digits."""
    return stored.is_digest(text)


def encode(files: Sequence[File]) -> bytes:
    """Return the document that keeps the manifest of *files*: its canonical bytes.

    Raises:
        InvalidDocument: a path, size or digest in *files* cannot stand in a manifest.
    """
    check(ordered(files), "manifest")
    return canonical(files)


def decode(data: bytes, *, source: str = "manifest") -> tuple[File, ...]:
    """Return the files of the manifest *data*, in its order.

    Whatever any release registered is read (`domain.stored`), also what none would take today. Anything but
    the canonical bytes of a manifest is refused: another spelling of the same files would have another digest.

    Raises:
        InvalidDocument: *data* is not such a manifest; *source* says where it came from.
    """
    try:
        rows = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise InvalidDocument(
            f"The {source} is not JSON: it is torn or not a manifest.",
            hint="Restore it from a copy of the store.",
        ) from exc
    if not isinstance(rows, list):
        raise _bad(source, "it is not a list")
    files = tuple(_file(row, index, source) for index, row in enumerate(rows))
    _check_order(files, source)
    if canonical(files) != data:
        raise _bad(source, "it is not in the canonical form (spacing, order of keys or of files)")
    return files


def _file(row: Any, index: int, source: str) -> File:
    if not isinstance(row, dict) or set(row) != _KEYS:
        raise _bad(source, f"item {index} does not have exactly the keys {', '.join(sorted(_KEYS))}")
    if row["algorithm"] != "sha256":
        raise _bad(source, f"item {index} has the algorithm {shown(row['algorithm'])} instead of 'sha256'")
    if not isinstance(row["name"], str):
        raise _bad(source, f"item {index} has a name that is not text")
    if not isinstance(row["digest"], str):
        raise _bad(source, f"the digest of {shown(row['name'])} is not text")
    try:
        return stored.file(row["name"], row["size"], "sha256:" + row["digest"])
    except InvalidDocument as exc:
        raise _bad(source, exc.message.removesuffix(".")) from exc


def check(files: Sequence[File], source: str) -> None:
    """Raise InvalidDocument, naming *source*, unless *files* may be registered: paths, sizes, digests, in order."""
    for file in files:
        try:
            check_path(file.path)
        except InvalidName as exc:
            raise _bad(source, str(exc)) from exc
        size: object = file.size  # from outside: any JSON
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_SIZE:
            raise _bad(source, f"the size of {shown(file.path)} is {shown(size)}, not 0 … 2**63-1")
        if not is_digest(file.digest):
            raise _bad(source, f"the digest of {shown(file.path)} is not 64 lower-case hex digits")
    _check_order(files, source)
    try:
        check_paths([file.path for file in files])
    except InvalidName as exc:
        raise _bad(source, str(exc)) from exc


def _check_order(files: Sequence[File], source: str) -> None:
    if len(files) > MAX_FILES:
        raise _bad(source, f"it lists {len(files)} files, more than {MAX_FILES}")
    previous: str | None = None
    for file in files:
        if previous is not None and file.path <= previous:
            raise _bad(source, f"{shown(file.path)} is listed twice or out of order")
        previous = file.path


def _bad(source: str, problem: str) -> InvalidDocument:
    return InvalidDocument(f"The {source} cannot be used: {problem}.", problems=(problem,))
