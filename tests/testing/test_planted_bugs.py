"""The machine can fail: bugs of the kinds that real registries had are planted, and it finds each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import rule, run_state_machine_as_test

from modelhub_sdk.domain import rules
from modelhub_sdk.index import queries, search
from modelhub_sdk.stores.files import FileStore
from modelhub_sdk.testing import RegistryMachine
from modelhub_sdk.testing.strategies import Command

pytestmark = pytest.mark.timeout(900)  # finding is quick, shrinking on a busy machine is not

Plant = Callable[[pytest.MonkeyPatch], None]


def wrong_order(patch: pytest.MonkeyPatch) -> None:
    """Text is sorted without regard to case, as a database with another collation does."""
    right = search.order

    def order(*arguments: Any) -> tuple[str, list[object]]:
        text, values = right(*arguments)
        return text.replace(" DESC", " COLLATE NOCASE DESC"), values

    patch.setattr(search, "order", order)


def lost_update(patch: pytest.MonkeyPatch) -> None:
    """An edit ignores that somebody else was quicker."""
    patch.setattr(rules, "unchanged_since", lambda *_: None)


def archived_is_latest(patch: pytest.MonkeyPatch) -> None:
    """`latest` finds a version that was put away."""
    patch.setattr(queries, "_LATEST", queries._LATEST.replace("AND a.since <= ?", "AND a.since < -abs(?)"))


def half_erased(patch: pytest.MonkeyPatch) -> None:
    """One store forgets to erase."""
    patch.setattr(FileStore, "erase", lambda *_: None)


class PuttingAway(RegistryMachine):
    """Among all else, approves a version and puts it away: by chance alone that is rare."""

    @rule(handle=RegistryMachine.handle)
    def approve_and_put_away(self, handle: int) -> None:
        """Register, approve and archive the first version of a model."""
        self.act(Command("register", ("churn", {"f": b"1"}), {}, "ana", 0), handle)
        for verb in ("approve", "archive"):
            self.act(Command(verb, ("churn/v1", "why"), {}, "ana", 0), handle)


@pytest.mark.parametrize("plant", [wrong_order, lost_update, archived_is_latest, half_erased])
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine fails, and says which store answered what."""
    plant(monkeypatch)
    with pytest.raises(AssertionError) as failure:
        run_state_machine_as_test(
            PuttingAway if plant is archived_is_latest else RegistryMachine,
            settings=settings(
                max_examples=300,
                stateful_step_count=25,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            ),
        )
    assert any(word in str(failure.value) for word in ("instead of", "entry", "records"))
