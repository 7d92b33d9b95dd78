"""Registries on every store, driven by the same random commands, against the oracle."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from modelhub_sdk.testing import RegistryMachine
from tests.support import postgres

THOROUGH = bool(os.environ.get("THOROUGH_TESTS"))
TIMES = max(1, settings.default.max_examples // 200)  # more with HYPOTHESIS_PROFILE=thorough
# A smaller example is worth minutes of shrinking to whoever hunts, and not to whoever lands a change.
PHASES = [Phase.generate, Phase.shrink] if THOROUGH else [Phase.generate]


def run(machine: type[RegistryMachine], examples: int, steps: int) -> None:
    """Run *machine*: so many examples of so many steps."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples * TIMES,
            stateful_step_count=steps,
            deadline=None,
            phases=PHASES,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


@pytest.mark.timeout(900 * TIMES)
def test_memory_sqlite_and_a_folder_are_one() -> None:
    """The same commands give equal answers, equal errors and byte-equal journals, and those of the oracle."""
    run(RegistryMachine, 40 if THOROUGH else 15, 25)


@pytest.mark.timeout(900 * TIMES)
def test_postgres_is_as_memory(postgres_url: str) -> None:
    """PostgreSQL answers as memory and the oracle do, whatever its locale, zone and date style."""

    class OnPostgres(RegistryMachine):
        database = ""

        def places(self, root: Path) -> Iterable[tuple[str, str]]:
            self.database = postgres.create_database(postgres_url)
            yield f"memory://{root.name}", str(root / "memory")
            yield self.database, str(root / "postgres")

        def teardown(self) -> None:
            super().teardown()
            if self.database:
                postgres.drop_database(self.database)

    run(OnPostgres, 10 if THOROUGH else 4, 25)


@pytest.mark.timeout(900 * TIMES)
def test_an_object_store_is_as_memory(s3_bucket: Any) -> None:
    """S3 answers as memory and the oracle do."""

    class OnS3(RegistryMachine):
        searches = 5

        def places(self, root: Path) -> Iterable[tuple[str, str]]:
            yield f"memory://{root.name}", str(root / "memory")
            yield f"{s3_bucket.url}/{root.name}", f"{s3_bucket.url}/{root.name}/blobs"

    run(OnS3, 4 if THOROUGH else 2, 12)
