"""The metrics of a run that is on: all of them, in memory and in a file that survives a kill."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from modelhub_sdk.domain.values import Frozen, Value, from_json, to_json
from modelhub_sdk.formats import codec


class Series:
    """Values by key, in the order in which they were logged.

    Each call is a line of the file *path*: an attempt that was killed leaves its lines to the next
    attempt on this machine. Where the file cannot be written, memory alone has to do.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, list[list[Any]]] = {}
        self._last: dict[str, Value] = {}
        self._path: Path | None = path  # None once it turned out that it cannot be written
        self._file: IO[str] | None = None
        with suppress(OSError):
            self._recover(path)

    def _recover(self, path: Path) -> None:
        if not path.is_file():  # a pipe would be waited for
            return
        for line in path.read_text("utf-8", errors="replace").splitlines():
            try:
                step, at, values = json.loads(line)
                self._add(
                    {key: from_json(value) for key, value in values.items()}, step, codec.parse_time(at)
                )
            except (ValueError, TypeError, AttributeError):
                continue  # the line that was being written when the process was killed

    def add(self, values: Mapping[str, Value], step: int | None, at: datetime) -> None:
        """Add values that are normalised already."""
        line = codec.dumps(
            [step, codec.print_time(at), {key: to_json(value) for key, value in values.items()}]
        )
        with self._lock:
            self._add(values, step, at)
            if self._path is not None:
                try:
                    if self._file is None:
                        self._path.parent.mkdir(parents=True, exist_ok=True)
                        self._file = self._path.open("a", encoding="utf-8")
                    self._file.write(line.decode() + "\n")
                    self._file.flush()
                except (OSError, ValueError):  # the disk is full: memory has all of it until the end
                    self._path = None

    def _add(self, values: Mapping[str, Value], step: int | None, at: datetime) -> None:
        stamp = codec.print_time(at)
        for key, value in values.items():
            self._rows.setdefault(key, []).append([step, stamp, to_json(value)])
            self._last[key] = value

    def last(self) -> Frozen:
        """Return the last value of each key."""
        with self._lock:
            return Frozen(self._last)

    def rows(self) -> dict[str, list[list[Any]]]:
        """Return key -> [step, time, value as JSON], in order."""
        with self._lock:
            return {key: list(rows) for key, rows in self._rows.items()}

    def close(self) -> None:
        """Close the file."""
        with self._lock, suppress(OSError):
            if self._file is not None:
                self._file.close()
            self._file = None
