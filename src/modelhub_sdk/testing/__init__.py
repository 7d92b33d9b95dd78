"""For tests: throw-away registries for users, and the laws that every store keeps for who writes one.

- `registry` gives a registry that vanishes after a with block; pytest has it as the fixture ``modelhub``.
- `StoreConformance` is a class of tests: subclass it for a store of your own.
- `RegistryMachine` drives registries on several stores with the same random commands against an oracle.
- ``modelhub_sdk.testing.strategies`` has hypothesis strategies for everything that users type.

pytest and hypothesis come with ``pip install 'modelhub-sdk[testing]'``; `registry` needs neither.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelhub_sdk.registry import Registry
    from modelhub_sdk.testing.conformance import StoreConformance
    from modelhub_sdk.testing.machine import RegistryMachine
    from modelhub_sdk.testing.oracle import Oracle

__all__ = ["Oracle", "RegistryMachine", "StoreConformance", "registry"]

_HOMES = {"StoreConformance": "conformance", "RegistryMachine": "machine", "Oracle": "oracle"}


@contextmanager
def registry(kind: str = "memory", *, user: str = "tester", **options: Any) -> Iterator[Registry]:
    """Yield a fresh registry, also the default one of `modelhub_sdk.resolve`; afterwards nothing is left of it.

    >>> with registry() as reg:
    ...     str(reg.register("churn", {"model.pkl": b"weights"}))
    'model://churn/v1'

    Args:
        kind: ``"memory"``, ``"sqlite"`` or ``"folder"``; the latter two in a temporary folder.
        user: who acts.
        options: more for `modelhub_sdk.open`. The machine's ``MODELHUB_`` settings are not looked at.

    Raises:
        InvalidName: there is no such kind.
    """
    import tempfile

    from modelhub_sdk import hub
    from modelhub_sdk.errors import InvalidName, shown

    with tempfile.TemporaryDirectory(prefix="modelhub-testing-", ignore_cleanup_errors=True) as folder:
        urls = {
            "memory": "memory://",
            "sqlite": f"sqlite:///{folder}/models.db",
            "folder": os.path.join(folder, "registry"),
        }
        if kind not in urls:
            raise InvalidName(
                f"There is no registry of the kind {shown(kind)}.", hint="memory, sqlite or folder."
            )
        places = {"artifacts": os.path.join(folder, "artifacts"), "cache_dir": os.path.join(folder, "cache")}
        with _without_settings():
            reg = hub.open(urls[kind], user=user, **(places | options))
        with reg, hub.use(reg):
            yield reg


@contextmanager
def _without_settings() -> Iterator[None]:
    """Keep the machine's settings out: a test must never write to somebody's real bucket."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("MODELHUB_")}
    try:
        yield
    finally:
        os.environ.update(kept)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
