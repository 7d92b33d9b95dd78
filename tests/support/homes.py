"""A registry's place with all that belongs to it, for tests that break it and look what is left."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import modelhub_sdk as hub
from modelhub_sdk import ModelVersion, Registry
from modelhub_sdk.blobs import disk

LOCAL = ("sqlite", "folder")
ALL = ("sqlite", "folder", "postgres", "s3")

# What may lie in a place, and in a cache, once everybody is done. All else is a leftover.
_PLACE = re.compile(
    r"""registry\.db(-wal|-shm)?
      | (registry\.db\.artifacts|registry/blobs|artifacts|.*/artifacts)/(format\.json|[0-9a-f-]+/copy|[0-9a-f-]+/sha256/[0-9a-f]{2}/[0-9a-f]{62})
      | registry/journal/\d{7}/\d{10}\.json
      | registry/inbox/[0-9a-f]{32}\.json
      | registry/(packs|checkpoints)/[0-9a-f-]+\.z
      | registry/(erased|finished)/[0-9a-f-]+""",
    re.VERBOSE,
)
_CACHE = re.compile(
    r"""index/[0-9a-f]{32}-.*\.sqlite(-wal|-shm|\.turn)?
      | v1/blobs/[0-9a-f]{2}/[0-9a-f]{62}(\.note)?
      | v1/folders/[0-9a-f]{64}/.+
      | v1/whole/[0-9a-f]{64}
      | v1/partial/[0-9a-f]{64}\..+            # of an interrupted transfer: the next one goes on from there
      | dropped/[0-9a-f]+
      | v1/records/[0-9a-f]{64}\.json(\.lock)?
      | v1/locks/[0-9a-f]{64}                   # open files tell whether they are held; the file is nothing
      | pins/.+\.json
      | spool/[0-9a-f]{32}/[0-9a-f]{32}\.json""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Home:
    """Where a registry is.

    Attributes:
        kind: ``sqlite``, ``folder``, ``postgres`` or ``s3``.
        url: what `open` takes.
        folder: everything that it has on this disk, but for the cache.
        cache: the cache of those who open it here.
        artifacts: where its bytes are, if that must be said.
    """

    kind: str
    url: str
    folder: Path
    cache: Path
    artifacts: str | None = None

    def open(self, **options: Any) -> Registry:
        """Open it; made first where it is not there."""
        options.setdefault("create", True)
        return hub.open(self.url, artifacts=self.artifacts, cache_dir=self.cache, user="tester", **options)

    @contextlib.contextmanager
    def opened(self, **options: Any) -> Iterator[Registry]:
        """Open it for a block."""
        with self.open(**options) as registry:
            yield registry

    def leftovers(self) -> list[str]:
        """Return the files, here and in the cache, that nobody will ever ask for again."""
        found = [f"place: {name}" for name in files_in(self.folder) if not _PLACE.fullmatch(name)]
        return found + [f"cache: {name}" for name in files_in(self.cache) if not _CACHE.fullmatch(name)]


def home(kind: str, folder: Path) -> Home:
    """Return a place on this disk for a registry of *kind* (one of `LOCAL`)."""
    place = folder / "place"
    place.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{place}/registry.db" if kind == "sqlite" else str(place / "registry")
    return Home(kind, url, place, folder / "cache")


def files_in(folder: Path) -> list[str]:
    """Return the paths of all files under *folder*, relative to it."""
    found = []
    for top, _, names in os.walk(folder):
        found += [os.path.relpath(os.path.join(top, name), folder) for name in names]
    return sorted(found)


def copy_tree(source: Path, target: Path) -> None:
    """Make *target* a copy of *source*, whatever was there."""
    if target.exists():
        disk.remove_tree(os.fspath(target))
    if source.exists():
        shutil.copytree(source, target, symlinks=True, copy_function=_copied)


def _copied(source: str, target: str) -> None:
    shutil.copy2(source, target)
    os.chmod(target, stat.S_IMODE(os.stat(source).st_mode))


def facts(version: ModelVersion) -> tuple[Any, ...]:
    """Return what was acknowledged of a version."""
    return version.model, version.number, version.status, version.digest, version.metrics, version.tags


def held(registry: Registry) -> set[tuple[Any, ...]]:
    """Return the facts of every version that *registry* holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models = [model.name for model in registry.models(limit=1000)]
        return {facts(version) for model in models for version in registry.versions(model, limit=10_000)}


def check_sound(registry: Registry, acknowledged: Iterable[tuple[Any, ...]] = ()) -> None:
    """Check that *registry* verifies, and holds what was *acknowledged*."""
    verification = registry.verify()
    assert verification.ok, verification.problems
    missing = set(acknowledged) - held(registry)
    assert not missing, f"acknowledged and lost: {missing}"
