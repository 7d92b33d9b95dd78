"""Many processes write one model at once: none lost, none double, none failed, in an order that holds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

import modelhub_sdk as hub
from tests.support.crowd import Tell, together
from tests.support.homes import ALL, Home

PROCESSES = 8
EACH = 50
# A registration there is a dozen requests to one server.
EACH_ON_S3 = 50 if os.environ.get("THOROUGH_TESTS") else 8

MakeHome = Callable[[str], Home]
Call = tuple[int, float, float]
"""A version's number, and when its registration began and returned, by the machine's monotonic clock."""


def _registering(
    tell: Tell, ready: Callable[[], Any], home: Home, who: int, count: int, own_cache: bool
) -> None:
    """Register *count* versions once everybody is ready, and tell of each as a `Call`."""
    cache = home.cache / str(who) if own_cache else home.cache
    ready()
    with hub.open(
        home.url, artifacts=home.artifacts, cache_dir=cache, create=True, user=f"writer-{who}"
    ) as registry:
        for turn in range(count):
            began = time.monotonic()
            files = {"shared.bin": b"the same bytes", "own.txt": f"{who}/{turn}".encode()}
            version = registry.register("m", files, metrics={"turn": turn})
            tell((version.number, began, time.monotonic()))


def race(home: Home, processes: int, count: int, *, own_caches: bool = False) -> list[Call]:
    """Let *processes* register *count* versions each, at once; return the calls, checked to be dense."""
    told = together(_registering, [(home, who, count, own_caches) for who in range(processes)])
    calls: list[Call] = [call for one in told for call in one]
    numbers = sorted(number for number, _, _ in calls)
    assert numbers == list(range(1, processes * count + 1)), "lost or double"
    return calls


def out_of_order(calls: list[Call]) -> list[tuple[int, int]]:
    """Return pairs of numbers whose order is not that of their calls, though one ended before the other began."""
    wrong = []
    # Of the calls that had returned when this one began, the highest number must be below its own.
    by_end = sorted(calls, key=lambda call: call[2])
    highest, at = 0, 0
    for number, began, _ in sorted(calls, key=lambda call: call[1]):
        while at < len(by_end) and by_end[at][2] < began:
            highest = max(highest, by_end[at][0])
            at += 1
        if highest > number:
            wrong.append((highest, number))
    return wrong


def test_the_order_check_finds_a_stale_number() -> None:
    """A call that begins after another returned, and gets a lower number, is found."""
    assert out_of_order([(1, 0.0, 1.0), (2, 0.5, 1.5), (3, 2.0, 3.0)]) == []
    assert out_of_order([(2, 0.0, 1.0), (1, 1.1, 1.5)]) == [(2, 1)]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ALL)
def test_eight_processes_get_four_hundred_numbers(kind: str, make_home: MakeHome) -> None:
    """Eight processes register 50 versions each (fewer on S3): 1 … 400, in real-time order, all held, and all verify."""
    home = make_home(kind)
    began = time.monotonic()
    each = EACH_ON_S3 if kind == "s3" else EACH
    calls = race(home, PROCESSES, each)
    took = time.monotonic() - began
    assert out_of_order(calls) == []
    with home.opened() as registry:
        assert registry.model("m").last_number == PROCESSES * each
        verification = registry.verify()
        assert verification.ok, verification.problems
        assert verification.entries == 1 + PROCESSES * each
        assert verification.blobs == 1 + PROCESSES * each
    assert home.leftovers() == []
    spans = sorted(end - start for _, start, end in calls)
    print(
        f"\n{kind}: {took:.1f} s in all, a call {spans[len(spans) // 2] * 1e3:.0f} ms, the slowest {spans[-1]:.2f} s"
    )


@pytest.mark.parametrize("kind", ALL)
def test_eight_processes_make_one_registry_at_once(kind: str, make_home: MakeHome) -> None:
    """The first use of a fresh place by eight processes at once makes one registry, and nobody fails."""
    home = make_home(kind)
    race(home, PROCESSES, 1)
    with home.opened() as registry:
        assert registry.verify().ok
        assert registry.audit(action="registry.created").total == 1
    assert home.leftovers() == []


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_writers_with_caches_of_their_own(kind: str, make_home: MakeHome) -> None:
    """Hosts that share the journal and no index get dense numbers as well."""
    home = make_home(kind)
    calls = race(home, 4, 5, own_caches=True)
    assert out_of_order(calls) == []
    with home.opened() as registry:
        assert registry.verify().ok


def _deciding(tell: Tell, ready: Callable[[], Any], home: Home, who: int, verb: str) -> None:
    with hub.open(home.url, artifacts=home.artifacts, cache_dir=home.cache, user=f"judge-{who}") as registry:
        ready()
        for number in range(1, 6):
            tell((number, getattr(registry, verb)(f"m/v{number}", f"{verb} by {who}").seq))
            registry.set_alias("m", "champion", 1 + (number + who) % 2)


@pytest.mark.parametrize("kind", ["sqlite", "folder", "postgres"])
def test_decisions_at_once_end_in_one_state(kind: str, make_home: MakeHome) -> None:
    """Processes that approve and reopen the same versions at once end in the state of the last decision."""
    home = make_home(kind)
    with home.opened() as registry:
        for turn in range(5):
            registry.register("m", {"a.bin": b"bytes"}, metrics={"turn": turn})
    together(_deciding, [(home, who, ("approve", "reopen")[who % 2]) for who in range(4)])
    with home.opened() as registry:
        assert registry.verify().ok
        for number in range(1, 6):
            version = registry.version(f"m/v{number}")
            last = next(
                r.action
                for r in registry.audit(version)
                if r.action in ("version.approved", "version.reopened")
            )
            assert version.status == {"version.approved": "approved", "version.reopened": "pending"}[last]


def _editing(tell: Tell, ready: Callable[[], Any], home: Home, who: int) -> None:
    with hub.open(home.url, artifacts=home.artifacts, cache_dir=home.cache, user=f"editor-{who}") as registry:
        ready()
        for _ in range(5):
            while True:
                model = registry.model("m")
                count = int(model.fields.get("count", 0))
                try:
                    registry.edit_model("m", fields={"count": count + 1}, if_seq=model.seq)
                except hub.Conflict:
                    continue
                tell(count + 1)
                break


@pytest.mark.parametrize("kind", ["sqlite", "folder", "postgres"])
def test_no_update_is_lost_with_if_seq(kind: str, make_home: MakeHome) -> None:
    """Four processes that count up a field, each on what it has read, lose none of their steps."""
    home = make_home(kind)
    with home.opened() as registry:
        registry.create_model("m", fields={"count": 0})
    told = together(_editing, [(home, who) for who in range(4)])
    assert sorted(step for one in told for step in one) == list(range(1, 21))
    with home.opened() as registry:
        assert registry.model("m").fields["count"] == 20
