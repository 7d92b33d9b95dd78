"""Places for registries, on every kind of store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.homes import LOCAL, Home, home


@pytest.fixture
def make_home(request: pytest.FixtureRequest, tmp_path: Path):
    """Return a function from the kind of a store to an empty place of that kind."""

    def make(kind: str) -> Home:
        if kind in LOCAL:
            return home(kind, tmp_path)
        (tmp_path / "place").mkdir(exist_ok=True)
        if kind == "postgres":
            url = request.getfixturevalue("postgres_db")
            return Home(
                kind, url, tmp_path / "place", tmp_path / "cache", str(tmp_path / "place" / "artifacts")
            )
        bucket = request.getfixturevalue("s3_bucket")
        return Home(kind, f"{bucket.url}/hub", tmp_path / "place", tmp_path / "cache")

    return make
