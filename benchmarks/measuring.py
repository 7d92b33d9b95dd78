"""How things are measured: medians of alternating runs, CPU or wall time, and peak memory of a child."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

_quick = [False]


def quick(on: bool | None = None) -> bool:
    """Return whether small sizes are wanted; with *on*, set it."""
    if on is not None:
        _quick[0] = on
    return _quick[0]


@dataclass
class Result:
    """One line of the table: ours, the baseline, and the limit on their ratio or difference."""

    name: str
    ours: float
    base: float
    baseline: str
    limit: float
    unit: str = "ms"
    relation: str = "ratio"

    @property
    def value(self) -> float:
        """What the limit is about."""
        if self.relation == "difference":
            return self.ours - self.base
        return self.ours if self.relation == "absolute" else self.ours / self.base

    @property
    def good(self) -> bool:
        """Whether the limit is kept."""
        return self.value <= self.limit

    @staticmethod
    def heading() -> str:
        """Return the first line of the table."""
        return f"{'benchmark':<44} {'ours':>11} {'baseline':>11} {'figure':>10} {'limit':>9}      baseline is"

    def __str__(self) -> str:
        figure = f"{self.value:.2f} x" if self.relation == "ratio" else f"{self.value:.2f} {self.unit}"
        limit = f"{self.limit:g} x" if self.relation == "ratio" else f"{self.limit:g} {self.unit}"
        base = "" if self.relation == "absolute" else f"{self.base:.2f} {self.unit}"
        word = "" if self.good else "MISSED"
        return f"{self.name:<44} {self.ours:>8.2f} {self.unit} {base:>11} {figure:>10} {limit:>9} {word:<6} {self.baseline}"


def alternate(ours: Callable[[], float], base: Callable[[], float], runs: int) -> tuple[float, float]:
    """Return the medians of both, run in turn after a warm-up."""
    ours(), base()
    pairs = [(ours(), base()) for _ in range(runs)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def cpu(action: Callable[[], object]) -> float:
    """Return the CPU milliseconds of this process and its threads during *action*."""
    start = time.process_time()
    action()
    return (time.process_time() - start) * 1000


def wall(action: Callable[[], object]) -> float:
    """Return the milliseconds that *action* took."""
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


def child(code: str, *arguments: str) -> tuple[float, float]:
    """Run *code* in a fresh interpreter; return its CPU and its wall milliseconds."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    took = (time.perf_counter() - start) * 1000
    process.returncode = status
    if status:
        raise RuntimeError(f"the child failed with status {status}")
    return (usage.ru_utime + usage.ru_stime) * 1000, took


def peak(code: str, *arguments: str) -> float:
    """Run *code* in a fresh interpreter; return its peak memory in MB, as Linux counts it for the process alone."""
    # Not ru_maxrss: that begins with the memory of the process that forked.
    after = "\nprint([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    done = subprocess.run(
        [sys.executable, "-c", code + after, *arguments], check=True, capture_output=True, text=True
    )
    return int(done.stdout) / 1024
