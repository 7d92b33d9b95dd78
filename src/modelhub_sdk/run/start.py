"""What a run is started with: what the user said, and inside a Valohai execution what that says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelhub_sdk.domain.lineage import Code
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.errors import InvalidName, shown
from modelhub_sdk.run import code, inputs, steps, valohai
from modelhub_sdk.run.session import DEFAULT_OUTPUTS, Run

if TYPE_CHECKING:
    from modelhub_sdk.registry import Registry

_OUTPUTS = "/valohai/outputs"


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
    found = valohai.execution() if "MODELHUB_RUN_ID" not in os.environ else None
    facts: dict[str, Any] = {}
    around: tuple[Any, ...] = ()
    if found is not None:
        around = found.inputs
        id = found.id if id is None else id  # noqa: A001
        name = found.step or name if name is None else name
        params = {**found.params, **(params or {})}
        commit = found.commit if commit is None else commit
        if outputs == DEFAULT_OUTPUTS:
            outputs = os.environ.get("VH_OUTPUTS_DIR") or _OUTPUTS
        facts = {"step": found.step, "pipeline": found.pipeline, "image": found.image}
        if found.commit is not None:
            seen = code.capture(commit=found.commit)
            facts["code"] = Code(
                commit=found.commit,
                branch=seen.code.branch,
                repository=seen.code.repository,
                entry=seen.code.entry,
                script=seen.code.script,
            )
            facts["root"] = seen.root

    def prepare(run: Run) -> None:
        for one in around:
            run.note_input(one)

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
        facts=facts,
        prepare=prepare,
    )


def resolve_inputs(
    reg: Registry, wanted: Mapping[str, Any], into: str | os.PathLike[str], params: Mapping[str, Any]
) -> Mapping[str, inputs.PlacedInput]:
    """Bring inputs into a folder. See `Registry.resolve_inputs`."""
    return _laid_out(reg, inputs.specs(wanted), _folder(into), params)


def resolve_step(
    reg: Registry,
    path: str | os.PathLike[str],
    step: str,
    into: str | os.PathLike[str],
    *,
    parameters: Mapping[str, Any] | None,
    inputs: Mapping[str, Any] | None,
) -> Mapping[str, inputs.PlacedInput]:
    """Bring the inputs of a step into a folder. See `Registry.resolve_step`."""
    plan = steps.plan(steps.load(path), step, parameters, inputs)
    folder = _folder(into)
    placed = _laid_out(reg, plan.inputs, folder, plan.params)
    facts = valohai.execution_facts(
        run_id=reg._core.new_id(),
        number=0,
        name=plan.name,
        step=plan.name,
        image=plan.image,
        commit=code.capture(plan.folder).code.commit,
        user=reg.user,
        project=reg._core.project,
    )
    valohai.write_config(
        folder.parent / "config",
        params=plan.params,
        inputs=tuple(placed.values()),
        execution=facts,
        inputs_dir=str(folder),
    )
    return placed


def _folder(into: object) -> Path:
    if not isinstance(into, (str, os.PathLike)) or "\0" in os.fsdecode(into) or not os.fsdecode(into):
        raise InvalidName(f"into={shown(into)} is not a folder.", hint="Pass the path of a folder.")
    return Path(os.path.abspath(os.fsdecode(into)))


def _laid_out(
    reg: Registry, wanted: tuple[inputs.InputSpec, ...], folder: Path, params: Mapping[str, Any]
) -> Mapping[str, inputs.PlacedInput]:
    return Frozen({one.name: one for one in inputs.lay_out(reg, wanted, folder, params)})
