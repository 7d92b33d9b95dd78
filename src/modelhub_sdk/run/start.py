"""What a run is started with: what the user said, and inside a Valohai execution what that says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from modelhub_sdk.run.session import Run

if TYPE_CHECKING:
    from modelhub_sdk.registry import Registry


def start(
    registry: Registry,
    name: str | None,
    *,
    id: str | None,  # noqa: A002  # the public name
    project: str | None,
    params: Mapping[str, Any] | None,
    inputs: Mapping[str, Any] | None,
    outputs: str | os.PathLike[str] | None,
    tags: Iterable[str],
    group: str | None,
    capture: bool | Iterable[str],
    keep: str,
    roots: Iterable[str | os.PathLike[str]],
    commit: str | None,
) -> Run:
    """Start a run. See `Registry.start_run`."""
    return Run(
        registry,
        name,
        id=id,
        project=project,
        params=params,
        inputs=inputs,
        outputs=outputs,
        tags=tags,
        group=group,
        capture=capture,
        keep=keep,
        roots=roots,
        commit=commit,
    )
