"""Steps and pipelines of ``valohai.yaml``, run here: each step a run, with its inputs, outputs and metrics."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from modelhub_sdk.blobs import disk
from modelhub_sdk.domain.lineage import RunRecord
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.errors import ChildFailed, InvalidDocument, ModelHubError, NotFound, shown
from modelhub_sdk.run import code, inputs, mount, steps, valohai
from modelhub_sdk.run.session import Run
from modelhub_sdk.run.steps import Project, StepPlan

if TYPE_CHECKING:
    from modelhub_sdk.registry import Registry


@frozen
class _Around:
    """What a step belongs to."""

    name: str | None = None
    pipeline: str | None = None
    group: str | None = None


def run_step(
    reg: Registry,
    path: str | os.PathLike[str],
    step: str,
    *,
    parameters: Mapping[str, Any] | None,
    inputs: Mapping[str, Any] | None,
    keep: str,
    id: str | None,  # noqa: A002  # the public name
    tags: Any,
) -> RunRecord:
    """Run a step of a valohai.yaml. See `Registry.run_step`."""
    project = steps.load(path)
    return _run(reg, steps.plan(project, step, parameters, inputs), keep=keep, id=id, tags=tags)


def _run(
    reg: Registry,
    plan: StepPlan,
    *,
    keep: str,
    id: str | None = None,  # noqa: A002  # the public name
    tags: Any = (),
    around: _Around | None = None,
) -> RunRecord:
    around = around or _Around()
    where = Path(reg._core.cache().path) / "runs"
    run_id = id if id is not None else reg._core.new_id()
    work = where / run_id / "valohai"
    captured = code.capture(plan.folder)
    entry, digest = _entry(plan)
    run = Run(
        reg,
        around.name or plan.name,
        id=run_id,
        project=None,
        params=plan.params,
        inputs=None,
        outputs=work / "outputs",
        tags=tags,
        group=around.group,
        capture=True,
        keep=keep,
        roots=[plan.folder],
        commit=None,
        facts={
            "step": plan.name,
            "pipeline": around.pipeline,
            "command": plan.told,
            "code": evolve(captured.code, entry=entry, script=digest),
            "root": captured.root,
            "image": None,
        },
        prepare=lambda started: _prepared(started, plan, work),
    )
    with run:
        _called(run, plan, work)
    return run.finish()


def _entry(plan: StepPlan) -> tuple[str | None, str | None]:
    """Return the program that a step's command names, and its digest."""
    try:
        words = shlex.split(plan.command)
    except ValueError:
        words = plan.command.split()
    for word in words:
        path = plan.folder / word
        if word.endswith((".py", ".sh", ".r", ".R", ".jl")) and path.is_file():
            digest, _size = disk.hash_file(os.path.realpath(path))
            return Path(word).as_posix().removeprefix("./"), digest
    return None, None


def _prepared(run: Run, plan: StepPlan, work: Path) -> None:
    """Lay out the inputs: before the run is recorded, so that one that cannot be had stops it."""
    placed = inputs.lay_out(run.registry, plan.inputs, work / "inputs", plan.params)
    for one in placed:
        for found in one.run_inputs():
            run.note_input(found)
        run.note_alerts(one.alerts)
    run.placed = placed


def _called(run: Run, plan: StepPlan, work: Path) -> None:
    folders = {name: work / name for name in ("inputs", "outputs", "config")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    folders["repository"] = plan.folder
    mounted = mount.is_needed(plan.command, plan.folder)
    if mounted and not mount.is_possible() and not _is_there(folders):
        raise InvalidDocument(mount.explanation(folders), hint="")
    mounted = mounted and mount.is_possible()
    seen = {name: f"{mount.ROOT}/{name}" if mounted else str(folder) for name, folder in folders.items()}
    record = run.registry.run(run.id)
    facts = valohai.execution_facts(
        run_id=run.id,
        number=record.number,
        name=record.name,
        step=plan.name,
        image=plan.image,
        commit=record.code.commit,
        user=run.registry.user,
        project=record.project,
    )
    valohai.write_config(
        folders["config"], params=plan.params, inputs=run.placed, execution=facts, inputs_dir=seen["inputs"]
    )
    variables = valohai.variables(
        run_id=run.id,
        config=seen["config"],
        inputs=seen["inputs"],
        outputs=seen["outputs"],
        repository=seen["repository"],
    )
    # The program's "python" is this one, with what is installed beside it.
    variables["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    command = [shutil.which("bash") or "sh", "-c", plan.command]  # Valohai's shell is bash
    if mounted:
        place = work / "root"
        place.mkdir()
        command = mount.wrapped(command, folders, place)
    try:
        run.call(command, cwd=plan.folder, env={**plan.environment, **variables})
    except ChildFailed as failure:
        raise ChildFailed(
            f"The step {shown(plan.name)} ended with status {failure.status}: {shown(plan.told, 200)}.",
            hint="Its output says why.",
            status=failure.status,
            run_id=run.id,
        ) from None


def _is_there(folders: Mapping[str, Path]) -> bool:
    """Return whether /valohai is these folders already: a container that was started so."""
    return all(
        os.path.realpath(f"{mount.ROOT}/{name}") == os.path.realpath(folder)
        for name, folder in folders.items()
    )


# --- pipelines ----------------------------------------------------------------------------------------------


def run_pipeline(
    reg: Registry,
    path: str | os.PathLike[str],
    name: str,
    *,
    parameters: Mapping[str, Any] | None,
    inputs: Mapping[str, Any] | None,
    keep: str,
) -> tuple[RunRecord, ...]:
    """Run a pipeline of a valohai.yaml. See `Registry.run_pipeline`."""
    project = steps.load(path)
    plan = steps.pipeline(project, name)
    given = {"parameters": _parameters(parameters, plan), "inputs": _by_node(inputs or {}, plan)}
    group = f"{name}-{reg._core.new_id()[:16]}"
    done: dict[str, tuple[StepPlan, RunRecord]] = {}
    skipped: set[str] = set()
    failure: ModelHubError | None = None
    for node in plan.nodes:
        if any(edge.target == node.name and edge.source in skipped for edge in plan.edges):
            skipped.add(node.name)
            continue
        wanted = _node_plan(reg, project, plan, node, given, done)
        try:
            around = _Around(node.name, plan.name, group)
            done[node.name] = wanted, _run(reg, wanted, keep=keep, around=around)
        except ChildFailed as error:
            if node.on_error not in ("continue", "stop-next"):
                raise
            failure = error
            skipped.add(node.name)
    if failure is not None and not done:
        raise failure
    return tuple(record for _plan, record in done.values())


def _parameters(given: Mapping[str, Any] | None, plan: steps.PipelinePlan) -> dict[str, dict[str, Any]]:
    """Return node -> parameter -> value: of the pipeline's own parameters, and those of single nodes."""
    values = dict(given or {})
    found: dict[str, dict[str, Any]] = {}
    for name, (default, targets) in plan.parameters.items():
        value = values.pop(name, default)
        for node, parameter in targets if value is not None else ():
            found.setdefault(node, {})[parameter] = value
    for node, own in _by_node(values, plan).items():
        found.setdefault(node, {}).update(own)
    return found


def _by_node(given: Mapping[str, Any], plan: steps.PipelinePlan) -> dict[str, dict[str, Any]]:
    """Return ``{"node.name": value}`` as node -> name -> value."""
    found: dict[str, dict[str, Any]] = {}
    nodes = {node.name for node in plan.nodes}
    for key, value in given.items():
        node, dot, name = key.partition(".")
        if not dot or node not in nodes:
            raise NotFound(
                f"{shown(key)} names nothing of the pipeline {shown(plan.name)}.",
                hint=f'Write "<node>.<name>"; the nodes are {", ".join(sorted(nodes))}.',
            )
        found.setdefault(node, {})[name] = value
    return found


def _node_plan(
    reg: Registry,
    project: Project,
    plan: steps.PipelinePlan,
    node: steps.PipelineNode,
    given: Mapping[str, dict[str, dict[str, Any]]],
    done: Mapping[str, tuple[StepPlan, RunRecord]],
) -> StepPlan:
    """Return the plan of a node, with what its edges bring."""
    uris: dict[str, list[str]] = {}
    values: dict[str, Any] = dict(given["parameters"].get(node.name, {}))
    brought: dict[str, list[str]] = {}
    for edge in plan.edges:
        if edge.target != node.name or edge.source not in done:
            continue
        ran, record = done[edge.source]
        if edge.target_what == "parameter":  # of the plan: a record has no secrets
            source: Mapping[str, Any] = record.metrics if edge.what == "metadata" else ran.params
            if edge.key not in source:
                raise NotFound(
                    f"The node {shown(edge.source)} has no {edge.what} {shown(edge.key)} for {shown(edge.target)}.",
                    hint=f"It has {', '.join(map(shown, list(source)[:10])) or 'none'}.",
                )
            values[edge.target_key] = source[edge.key]
        else:
            brought.setdefault(edge.target_key, []).extend(_uris(reg, record, edge))
    for name, found in brought.items():
        uris[name] = [*(steps.default_uris(project, node, name) if node.append else ()), *found]
    for name, value in given["inputs"].get(node.name, {}).items():
        uris[name] = list(value) if isinstance(value, (list, tuple)) else [value]
    return steps.plan(project, node.step, Frozen(values), uris, override=node.override)


def _uris(reg: Registry, record: RunRecord, edge: steps.PipelineEdge) -> list[str]:
    if edge.what == "input":
        return [one.uri for one in record.inputs if one.name == edge.key]
    datums = {reg.datum(uri).name: uri for uri in record.datums}
    found = [datums[name] for name in steps.fitting(edge.key, datums)]
    if not found:
        raise NotFound(
            f"The node {shown(edge.source)} wrote no output that fits {shown(edge.key)}.",
            hint=f"It wrote {', '.join(map(shown, sorted(datums)[:10])) or 'nothing'}.",
        )
    return found
