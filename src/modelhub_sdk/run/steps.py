"""``valohai.yaml``: its steps and pipelines as plans. Parsed by ``valohai-yaml``, checked here."""

from __future__ import annotations

import copy
import fnmatch
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from modelhub_sdk.blobs import disk
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.errors import (
    InvalidDocument,
    InvalidName,
    MissingExtra,
    NotFound,
    nearest,
    shown,
)
from modelhub_sdk.run import masking
from modelhub_sdk.run.inputs import InputSpec, is_name, uri_texts

log = logging.getLogger("modelhub_sdk")


@frozen
class Project:
    """A ``valohai.yaml``; `folder` is the repository that it stands in, `config` what valohai-yaml made of it."""

    path: Path
    config: Any

    @property
    def folder(self) -> Path:
        """Where its programs are."""
        return self.path.parent


@frozen
class StepPlan:
    """A step with everything that is needed to run it.

    `command` is a line for the shell, `told` the same without secrets: as it may be recorded.
    """

    name: str
    image: str
    command: str
    told: str
    folder: Path
    params: Mapping[str, Any] = Frozen()
    inputs: tuple[InputSpec, ...] = ()
    environment: Mapping[str, str] = Frozen()


@frozen
class PipelineNode:
    """A node of a pipeline: the name of its step, what it overrides of it, what follows when it fails.

    `append` means that what edges bring comes after the input's own URIs, not in their place.
    """

    name: str
    step: str
    override: Any = None
    on_error: str = "stop-all"
    append: bool = False


@frozen
class PipelineEdge:
    """*what* ``output``, ``input``, ``parameter`` or ``metadata`` called *key* of *source* becomes *target_key* of *target*."""

    source: str
    what: str
    key: str
    target: str
    target_what: str
    target_key: str


@frozen
class PipelinePlan:
    """A pipeline: its nodes in an order in which they can run, its edges, and its own parameters.

    `parameters` maps each to its default (None for none) and the (node, parameter) that get its value.
    """

    name: str
    nodes: tuple[PipelineNode, ...]
    edges: tuple[PipelineEdge, ...]
    parameters: Mapping[str, tuple[Any, tuple[tuple[str, str], ...]]] = Frozen()


def load(path: str | os.PathLike[str]) -> Project:
    """Return the project of a ``valohai.yaml``, or of the folder that it stands in.

    Raises:
        NotFound: there is none. InvalidDocument: it is no valid one; the message says where.
        MissingExtra: valohai-yaml is not installed.
    """
    try:
        import valohai_yaml
        import yaml
    except ImportError:
        raise MissingExtra(
            "Reading valohai.yaml needs valohai-yaml.", hint="pip install 'modelhub-sdk[valohai]'"
        ) from None
    if not isinstance(path, (str, bytes, os.PathLike)) or "\0" in os.fsdecode(path):
        raise InvalidName(f"{shown(path, 300)} is not a path.", hint="Pass the path of a valohai.yaml.")
    found = Path(os.path.abspath(os.fsdecode(path)))
    try:
        if found.is_dir():
            found /= "valohai.yaml"
        text = disk.read_file(found, 16 << 20, follow=True).decode("utf-8")
    except FileNotFoundError:
        raise NotFound(
            f"There is no {shown(str(found), 300)}.", hint="Pass the path of a valohai.yaml."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDocument(f"{shown(str(found), 300)} cannot be read: {_one_line(error)}.") from None
    try:
        return Project(found, valohai_yaml.parse(text))
    except yaml.YAMLError as error:
        raise InvalidDocument(f"{shown(str(found), 300)} is not YAML: {_one_line(error)}") from None
    except Exception as error:  # noqa: BLE001  # valohai-yaml raises ValidationErrors, ValueError, TypeError, KeyError …
        problems = [_one_line(one) for one in getattr(error, "errors", [])][:5] or [_one_line(error)]
        raise InvalidDocument(
            f"{shown(str(found), 300)} is not a valid valohai.yaml: {'; '.join(problems)}",
            problems=tuple(problems),
        ) from None


def _one_line(error: object) -> str:
    text = masking.text(str(getattr(error, "message", error))[:2000])
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split())[:300])


def plan(
    project: Project,
    step: str,
    parameters: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
    override: Any = None,
) -> StepPlan:
    """Return the plan of a step with *parameters* and *inputs* in the place of its defaults.

    *override* is that of a pipeline's node.

    Raises:
        NotFound: there is no such step, parameter or input; the message names the nearest.
        InvalidDocument: a parameter's value is none that it can have, or one is missing.
    """
    found = project.config.steps.get(step) if isinstance(step, str) else None
    if found is None:
        raise _missing("step", step, project.config.steps, str(project.path))
    parameters, inputs = _mapping("parameters", parameters), _mapping("inputs", inputs)
    if override is not None:
        found = _overridden(found, override)
    given = _parameters(found, parameters)
    for name in inputs:
        if name not in found.inputs:
            raise _missing("input", name, found.inputs, f"step {step}")
    try:
        command, told = (_joined(found.build_command(values)) for values in (given, _masked(given)))
    except Exception as error:  # noqa: BLE001  # whatever the template's interpolation raises
        raise InvalidDocument(
            f"The command of step {shown(step)} cannot be built: {_one_line(error)}"
        ) from None
    flat = {
        name: value if value is not None else False  # a flag that is not set is False, not unknown
        for name, value in given.items()
        if value is not None or found.parameters[name].type == "flag"
    }
    return StepPlan(
        name=step,
        image=found.image,
        command=command,
        told=masking.line(told),
        folder=project.folder,
        params=Frozen(flat),
        inputs=tuple(_input(one, inputs.get(name, _DEFAULT)) for name, one in found.inputs.items()),
        environment=Frozen(
            {
                name: str(one.default)
                for name, one in found.environment_variables.items()
                if one.default is not None
            }
        ),
    )


_DEFAULT: Any = object()
_SHELL = re.compile(r"[\n#;&|]|<<|\\$")  # in a command that does not go before " && " as it is


def _mapping(what: str, given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise InvalidName(f"{what} is {shown(given)}.", hint=f'Pass a mapping: {what}={{"name": …}}.')
    return given or {}


def _masked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters without secrets, in a form in which a command can still be built of them."""
    masked = masking.mapping(given)
    return {
        name: [masking.MASK] if masked[name] == masking.MASK and isinstance(value, list) else masked[name]
        for name, value in given.items()
    }


def _joined(commands: Iterable[str]) -> str:
    """Return commands as a line of which each part runs when all before it went well.

    One with an ``||``, a comment, a here-document or several lines is grouped, so that it means in the line
    what it means by itself.
    """
    real = [
        one for one in commands if any(line.strip(" \t")[:1] not in ("", "#") for line in one.splitlines())
    ]
    if len(real) < 2:
        return "".join(real)
    return " && ".join(f"{{ {one}\n}}" if _SHELL.search(one) else one for one in real)


def _overridden(step: Any, override: Any) -> Any:
    """Return the step as a node of a pipeline wants it."""
    merged = type(override).merge_with_step(override, step)
    found = copy.copy(step)
    found.inputs, found.parameters = merged.inputs, merged.parameters
    found.environment_variables = merged.environment_variables
    found.command = override.command or step.command
    found.image = override.image or step.image
    return found


def default_uris(project: Project, node: PipelineNode, name: str) -> list[str]:
    """Return the URIs that an input of a node has of its own."""
    step = project.config.steps[node.step]
    found = (_overridden(step, node.override) if node.override is not None else step).inputs.get(name)
    return [] if found is None else list(_input(found, _DEFAULT).uris)


def _missing(what: str, name: object, known: Iterable[str], where: str) -> NotFound:
    names = list(known)
    near = nearest(str(name), names)
    hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(names[:10]) or 'none'}."
    return NotFound(f"There is no {what} {shown(name)} in {shown(where, 300)}.", hint=hint, nearest=near)


def _parameters(step: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in step.parameters:
            raise _missing("parameter", name, step.parameters, f"step {step.name}")
    values: dict[str, Any] = {}
    for name, parameter in step.parameters.items():
        value = given.get(name, parameter.default)
        if value is None:
            if not parameter.optional and parameter.type != "flag":
                raise InvalidDocument(
                    f"The parameter {shown(name)} of step {shown(step.name)} has no value.",
                    hint=f"Pass parameters={{{name!r}: …}}.",
                )
            values[name] = None
            continue
        try:
            values[name] = parameter.validate(value)
        except Exception as error:  # noqa: BLE001  # ValidationErrors, InvalidType, TypeError …
            problems = [_one_line(one) for one in getattr(error, "errors", [])][:5] or [_one_line(error)]
            if masking.mapping({name: "x"})[name] != "x":  # the message has the value
                problems = ["its value is none that it can have"]
            raise InvalidDocument(
                f"The parameter {shown(name)} of step {shown(step.name)}: {'; '.join(problems)}."
            ) from None
    return values


def _input(found: Any, given: Any) -> InputSpec:
    if not is_name(found.name):
        raise InvalidDocument(
            f"{shown(found.name)} is not the name of an input.",
            hint="Write 1 to 64 characters without a slash.",
        )
    if given is _DEFAULT:
        given = [
            uri for uri in ([found.default] if isinstance(found.default, str) else found.default or ()) if uri
        ]
    return InputSpec(
        name=found.name,
        uris=uri_texts(found.name, given),
        keep=found.keep_directories.value,
        filename=found.filename or None,
        optional=found.optional,
        download=found.download.value == "always",
    )


# --- pipelines ----------------------------------------------------------------------------------------------


def pipeline(project: Project, name: str) -> PipelinePlan:
    """Return the plan of a pipeline.

    Raises:
        NotFound: there is no such pipeline, or a node's step is not there.
        InvalidDocument: a node or an edge of a kind that cannot be run here, or nodes in a circle.
    """
    found = project.config.pipelines.get(name) if isinstance(name, str) else None
    if found is None:
        raise _missing("pipeline", name, project.config.pipelines, str(project.path))
    nodes: dict[str, PipelineNode] = {}
    ports = {}
    for node in found.nodes:
        if node.name in nodes:
            raise InvalidDocument(f"The pipeline {shown(name)} has two nodes {shown(node.name)}.")
        if node.type != "execution":
            raise InvalidDocument(
                f"The node {shown(node.name)} is a {node.type}: only execution nodes run here.",
                hint="Run its steps with reg.run_step.",
            )
        if node.step not in project.config.steps:
            raise _missing("step", node.step, project.config.steps, f"node {node.name}")
        if commit := getattr(node, "commit", None):
            raise InvalidDocument(
                f"The node {shown(node.name)} is a step of the commit {shown(commit)}, not of this folder.",
                hint="Check that commit out, or remove it from the node.",
            )
        if getattr(node, "actions", None):
            log.warning("The actions of node %s are not followed here: it always runs.", node.name)
        append = getattr(getattr(node, "edge_merge_mode", None), "value", "replace") == "append"
        nodes[node.name] = PipelineNode(node.name, node.step, node.override, _on_error(node), append)
        ports[node.name] = _ports(project, nodes[node.name])
    edges = tuple(_edge(edge, ports) for edge in found.edges)
    return PipelinePlan(name, _ordered(nodes, edges), edges, Frozen(_own_parameters(found, ports)))


_Ports = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Node -> ``input`` or ``parameter`` -> their names."""


def _ports(project: Project, node: PipelineNode) -> dict[str, tuple[str, ...]]:
    step = project.config.steps[node.step]
    found = _overridden(step, node.override) if node.override is not None else step
    return {"input": tuple(found.inputs), "parameter": tuple(found.parameters)}


def _check_port(node: str, what: str, key: str, ports: _Ports, where: str) -> None:
    """Refuse a node, or an input or parameter of it, that is not there: before hours of other nodes."""
    if node not in ports:
        raise _missing("node", node, ports, where)
    if what in ports[node] and key not in ports[node][what]:
        raise _missing(what, key, ports[node][what], where)


def _own_parameters(found: Any, ports: _Ports) -> dict[str, tuple[Any, tuple[tuple[str, str], ...]]]:
    parameters = {}
    for one in found.parameters:
        targets = []
        for target in one.targets:
            node, _, rest = target.partition(".")
            what, _, key = rest.partition(".")
            # "parameters" is what valohai-yaml takes as well
            _check_port(node, what.removesuffix("s"), key, ports, f"parameter {one.name}")
            if what not in ("parameter", "parameters") or not key:
                raise InvalidDocument(
                    f"The parameter {shown(one.name)} goes to {shown(target, 200)}, which is no parameter.",
                    hint='Write "<node>.parameter.<name>".',
                )
            targets.append((node, key))
        parameters[one.name] = (one.default, tuple(targets))
    return parameters


def _on_error(node: Any) -> str:
    return str(getattr(getattr(node, "on_error", None), "value", "stop-all"))


def _edge(edge: Any, ports: _Ports) -> PipelineEdge:
    found = PipelineEdge(
        edge.source_node,
        edge.source_type,
        edge.source_key,
        edge.target_node,
        edge.target_type,
        edge.target_key,
    )
    text = f"{found.source}.{found.what}.{found.key} -> {found.target}.{found.target_what}.{found.target_key}"
    _check_port(found.source, found.what, found.key, ports, f"edge {text}")
    _check_port(found.target, found.target_what, found.target_key, ports, f"edge {text}")
    if (found.what, found.target_what) not in _EDGES:
        raise InvalidDocument(
            f"The edge {shown(text, 300)} cannot be followed here.",
            hint="output → input, input → input, parameter → parameter and metadata → parameter can.",
        )
    return found


_EDGES = {("output", "input"), ("input", "input"), ("parameter", "parameter"), ("metadata", "parameter")}


def _ordered(nodes: Mapping[str, PipelineNode], edges: Sequence[PipelineEdge]) -> tuple[PipelineNode, ...]:
    waiting = dict(nodes)
    done: list[PipelineNode] = []
    while waiting:
        ready = [
            name
            for name in waiting
            if not any(edge.target == name and edge.source in waiting for edge in edges)
        ]
        if not ready:
            raise InvalidDocument(
                f"The nodes {', '.join(map(shown, waiting))} wait for each other in a circle."
            )
        done += [waiting.pop(name) for name in ready]
    return tuple(done)


def fitting(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the outputs that ``output.<pattern>`` of an edge means: by path, or by name in any folder."""
    return [
        name
        for name in names
        if pattern in (name, name.rpartition("/")[2])  # it may look like a wildcard itself
        or fnmatch.fnmatchcase(name, pattern)
        or fnmatch.fnmatchcase(name.rpartition("/")[2], pattern)
    ]
