"""A database role that can only read, as an inference service should have."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

import modelhub_sdk as hub

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "share.md"


@pytest.fixture
def reader(postgres_db: str) -> str:
    """Return the URL of a role that may read the tables of `postgres_db` and nothing else."""
    role = f"reader_{secrets.token_hex(4)}"
    with psycopg.connect(postgres_db, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'reader'")
        admin.execute(f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {role}")
    return re.sub(r"//[^@]+@", f"//{role}:reader@", postgres_db)


def test_a_reader_resolves_in_silence(postgres_db: str, reader: str, tmp_path: Path) -> None:
    """It resolves; its uses are kept in its cache; nothing is printed; a change is refused with a typed error."""
    with hub.open(postgres_db, artifacts=tmp_path / "artifacts", create=True) as reg:
        reg.approve(reg.register("churn", {"model.bin": b"weights"}), "good")
    code = (
        "import modelhub_sdk as hub\n"
        f"with hub.open({reader!r}, cache_dir={str(tmp_path / 'cache')!r}) as reg:\n"
        "    for _ in range(3):\n"
        "        print(reg.resolve('model://churn/latest').uri)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("model://churn/v1\n" * 3, "")
    assert len(list((tmp_path / "cache").glob("**/spool/*/*.json"))) == 3
    with hub.open(reader) as reg, pytest.raises(hub.NotAllowed):
        reg.reject("churn/v1", "I may not")
    with hub.open(postgres_db, cache_dir=tmp_path / "cache") as reg:
        assert reg.latest("churn") is not None
        assert reg.verify().ok


def test_the_role_of_the_documentation(postgres_db: str, tmp_path: Path) -> None:
    """The role that the how-to makes can resolve and record its use, and decide nothing."""
    found = re.search(r"```sql\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    assert found is not None
    role = f"reader_{secrets.token_hex(4)}"
    with hub.open(postgres_db, artifacts=tmp_path / "artifacts", create=True) as reg:
        reg.approve(reg.register("churn", {"model.bin": b"weights"}), "good")
        with psycopg.connect(postgres_db, autocommit=True) as admin:
            admin.execute(re.sub(r"\breader\b", role, found[1]))  # type: ignore[arg-type]
        url = re.sub(r"//[^@]+@", f"//{role}:choose%20one@", postgres_db)
        with hub.open(url, cache_dir=tmp_path / "cache", user="service:churn") as service:
            service.resolve("model://churn/latest")
            with pytest.raises(hub.NotAllowed):
                service.reject("churn/v1", "I may not")
        assert [use.actor for use in reg.uses("churn/v1")] == ["service:churn"]
