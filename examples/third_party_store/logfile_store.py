"""A store in two plain files: everything that a backend of modelhub_sdk has to be.

``logfile:///path`` keeps the journal in ``/path/journal.log``, one line a record, and the inbox in
``/path/inbox.log``. One lock per file decides who writes; a line is whole when it ends with a newline,
so what a killed writer left is cut off by the next one. For a local disk (``flock`` must tell the truth).
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from attrs import asdict, evolve

from modelhub_sdk.errors import StoreUnavailable
from modelhub_sdk.ports import Note, Record, SequenceTaken


class LogfileStore:
    """The factory and the store; the entry point in pyproject.toml names this class."""

    def __init__(self, url: str, **options: Any) -> None:
        self.url = url
        self.folder = Path(url.removeprefix("logfile://"))
        self.artifacts = str(self.folder / "blobs")  # where bytes lie when nothing else is said
        self._threads = threading.Lock()  # flock knows processes, and only this handle's threads share one

    # --- the journal ---------------------------------------------------------------------------

    def append(self, record: Record) -> None:
        """Add a line if the number is the next one."""
        with self._locked("journal.log") as file:
            if record.seq != sum(1 for _ in _lines(file)) + 1:
                raise SequenceTaken(record.seq)
            _add(file, [_printed(record)])

    def read(self, after: int, limit: int | None = None) -> Iterator[Record]:
        """Yield records from the whole lines."""
        end = None if limit is None else after + limit
        for number, line in enumerate(self._read("journal.log"), 1):
            if end is not None and number > end:
                return
            if number > after:
                yield _parsed(line)

    def erase(self, seq: int, private: bytes) -> None:
        """Write the file anew, beside the old one, and put it in its place."""
        with self._locked("journal.log") as file:
            lines = list(_lines(file))
            lines[seq - 1] = _printed(evolve(_parsed(lines[seq - 1]), private=private))
            self._replace("journal.log", lines)

    # --- the inbox -----------------------------------------------------------------------------

    def note(self, notes: Sequence[Note]) -> None:
        """Add lines for notes that are new."""
        with self._locked("inbox.log") as file:
            known = {json.loads(line)["id"] for line in _lines(file)}
            new = {note.id: json.dumps({"id": note.id, "body": _text(note.body)}) for note in reversed(notes)}
            _add(file, [line.encode() for one, line in new.items() if one not in known])

    def notes(self, limit: int, *, after: str = "", skip: Collection[str] = ()) -> list[Note]:
        """Return notes by id."""
        rows = sorted((json.loads(line) for line in self._read("inbox.log")), key=lambda row: row["id"])
        found = [
            Note(row["id"], _bytes(row["body"]))
            for row in rows
            if row["id"] > after and row["id"] not in skip
        ]
        return found[:limit]

    def forget(self, ids: Sequence[str]) -> None:
        """Write the inbox anew without them."""
        with self._locked("inbox.log") as file:
            self._replace("inbox.log", [line for line in _lines(file) if json.loads(line)["id"] not in ids])

    def now(self) -> datetime | None:
        """None: this machine's clock is the only one."""
        return None

    def close(self) -> None:
        """Nothing stays open."""

    # --- the files -----------------------------------------------------------------------------

    @contextmanager
    def _locked(self, name: str) -> Iterator[BinaryIO]:
        """Lend the file, for one writer at a time. The lock is a file of its own: the other may be replaced."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._threads, open(self.folder / (name + ".lock"), "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                with open(self.folder / name, "a+b", buffering=0) as file:
                    yield file
        except OSError as error:
            raise StoreUnavailable(f"{self.url} cannot be written: {error.strerror}.") from None

    def _read(self, name: str) -> Iterator[bytes]:
        try:
            with open(self.folder / name, "rb") as file:
                yield from _lines(file)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreUnavailable(f"{self.url} cannot be read: {error.strerror}.") from None

    def _replace(self, name: str, lines: Sequence[bytes]) -> None:
        temporary = self.folder / f"{name}.new"
        with open(temporary, "wb") as file:
            file.writelines(line + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / name)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the whole lines; what has no newline yet is not there."""
    file.seek(0)
    for line in file.read().splitlines(keepends=True):  # JSON of ASCII: only newlines end a line
        if line.endswith(b"\n"):
            yield line[:-1]


def _add(file: BinaryIO, lines: Sequence[bytes]) -> None:
    """Add lines in one write, durably; first cut off what a killed writer left."""
    whole = sum(len(line) + 1 for line in _lines(file))
    os.ftruncate(file.fileno(), whole)
    data = b"".join(line + b"\n" for line in lines)
    try:
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), whole)
        raise


def _printed(record: Record) -> bytes:
    row = asdict(record) | {"body": _text(record.body), "private": _text(record.private)}
    return json.dumps(row).encode()


def _parsed(line: bytes) -> Record:
    row = json.loads(line)
    return Record(row["seq"], row["scope"], row["chain"], _bytes(row["body"]), _bytes(row["private"]))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)
