"""What Valohai puts around a program: config files, variables; and what can be read of them in a real execution.

The files are those that ``valohai-utils`` looks for (VALOHAI.md, sections 5 and 6).
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from modelhub_sdk.blobs import disk
from modelhub_sdk.domain.entities import File
from modelhub_sdk.domain.lineage import RunInput
from modelhub_sdk.domain.values import Frozen, normalise
from modelhub_sdk.errors import ModelHubError, shown
from modelhub_sdk.run import masking
from modelhub_sdk.run.inputs import PlacedInput, checksums, is_name

log = logging.getLogger("modelhub_sdk")

_CONFIG = "/valohai/config"


# --- writing ------------------------------------------------------------------------------------------------


def write_config(
    folder: Path,
    *,
    params: Mapping[str, Any],
    inputs: Sequence[PlacedInput],
    execution: Mapping[str, Any],
    inputs_dir: str,
) -> None:
    """Write the config files of an execution to *folder*, as JSON and as YAML.

    *inputs_dir* is where the program sees its inputs: paths in ``inputs.json`` begin with it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "parameters": dict(params),
        # All of them, and those without files without an id: valohai-utils would download the one, and fall
        # back to the defaults of prepare(), which it downloads, for an empty file.
        "inputs": {
            one.name: {"input_id": one.name, "files": _files(one, inputs_dir)} if one.files else {"files": []}
            for one in inputs
        },
        "execution": dict(execution),
        "runtime": {},
    }
    for name, value in content.items():
        text = json.dumps(value, indent=2, default=str)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
        _write_yaml(folder / f"{name}.yaml", json.loads(text))


def _write_yaml(path: Path, value: Any) -> None:
    try:
        import yaml
    except ImportError:  # nobody reads them but programs that have it
        return
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")


def _files(one: PlacedInput, inputs_dir: str) -> list[dict[str, Any]]:
    rows = []
    for file in one.files:
        uri = f"datum://{file.datum_id}" if file.datum_id and not file.uri.startswith("http") else file.uri
        row: dict[str, Any] = {
            "name": file.name,
            "path": f"{inputs_dir}/{one.name}/{file.name}",
            "uri": uri,
            "storage_uri": file.uri,
            "size": file.size,
            "checksums": checksums(file),
            "datum_id": file.datum_id,
            "input_id": one.name,
            "download_intent": "always" if file.path is not None else "on-demand",
        }
        if file.metadata:
            row["metadata"] = [dict(metadata) for metadata in file.metadata]
        rows.append(row)
    return rows


def execution_facts(
    *,
    run_id: str,
    number: int,
    name: str,
    step: str,
    image: str,
    commit: str | None,
    user: str,
    project: str | None,
) -> dict[str, Any]:
    """Return the content of ``execution.json`` for a run; scripts split the project's name at its slash."""
    return {
        "valohai.commit-identifier": commit,
        "valohai.creator-email": user if "@" in user else None,
        "valohai.creator-id": 0,
        "valohai.creator-name": user,
        "valohai.environment-id": None,
        "valohai.environment-name": "local",
        "valohai.environment-slug": "local",
        "valohai.execution-counter": number,
        "valohai.execution-ctime": datetime.now(UTC).isoformat(),
        "valohai.execution-duration": None,
        "valohai.execution-id": run_id,
        "valohai.execution-image": image,
        "valohai.execution-qtime": None,
        "valohai.execution-status": "started",
        "valohai.execution-step": step,
        "valohai.execution-tags": [],
        "valohai.execution-title": name,
        "valohai.project-id": project or "local",
        "valohai.project-name": f"local/{project or 'project'}",
    }


def variables(*, run_id: str, config: str, inputs: str, outputs: str, repository: str) -> dict[str, str]:
    """Return the variables that an execution has."""
    return {
        "VH_JOB_ID": f"exec-{run_id}",
        "VH_EXECUTION_ID": run_id,
        "VH_CONFIG_DIR": config,
        "VH_INPUTS_DIR": inputs,
        "VH_OUTPUTS_DIR": outputs,
        "VH_REPOSITORY_DIR": repository,
        "PYTHONUNBUFFERED": "1",
    }


# --- reading ------------------------------------------------------------------------------------------------


_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST = 2**63 - 1  # bytes of a file, as databases count


@frozen
class Execution:
    """What is known of the Valohai execution that this process is; all but `id` may be unknown.

    `problems` has a sentence for each thing in its files that could not be used.
    """

    id: str
    number: int | None = None
    title: str | None = None
    step: str | None = None
    commit: str | None = None
    image: str | None = None
    project: str | None = None
    creator: str | None = None
    pipeline: str | None = None
    node: str | None = None
    task: str | None = None
    tags: tuple[str, ...] = ()
    params: Mapping[str, Any] = Frozen()
    inputs: tuple[RunInput, ...] = ()
    problems: tuple[str, ...] = ()


def execution(folder: str | os.PathLike[str] | None = None) -> Execution | None:
    """Return the Valohai execution around this process, None when there is none.

    Nothing in its files is trusted: what cannot be used is left out, with a sentence in `problems` and in
    the log. Nothing is ever raised.
    """
    place = Path(folder if folder is not None else os.environ.get("VH_CONFIG_DIR") or _CONFIG)
    problems: list[str] = []
    raw = _read(place / "execution.json", problems)
    found = _text(raw.get("valohai.execution-id"))
    if found is None or not _ID.fullmatch(found):
        return None
    number = raw.get("valohai.execution-counter")
    tags = raw.get("valohai.execution-tags")
    made = Execution(
        id=found,
        number=number if isinstance(number, int) and not isinstance(number, bool) else None,
        title=_text(raw.get("valohai.execution-title")),
        step=_text(raw.get("valohai.execution-step")),
        commit=_text(raw.get("valohai.commit-identifier")),
        image=_text(raw.get("valohai.execution-image")),
        project=_text(raw.get("valohai.project-name")),
        creator=_text(raw.get("valohai.creator-email")) or _text(raw.get("valohai.creator-name")),
        pipeline=_text(raw.get("valohai.pipeline-title")) or _text(raw.get("valohai.pipeline-id")),
        node=_text(raw.get("valohai.pipeline-node-id")),
        task=_text(raw.get("valohai.task-id")),
        tags=tuple(tag for tag in tags if _text(tag)) if isinstance(tags, list) else (),
        params=Frozen(_params(_read(place / "parameters.json", problems), problems)),
        inputs=tuple(_inputs(_read(place / "inputs.json", problems), problems)),
    )
    for problem in problems:
        log.warning("%s", problem)
    return evolve(made, problems=tuple(problems))


def _read(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(disk.read_file(path, 64 << 20, follow=True).decode("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {type(error).__name__}.")
        return {}
    if isinstance(found, dict):
        return found
    problems.append(f"{path.name} is not a JSON object.")
    return {}


def _text(value: object) -> str | None:
    return value[:300] if isinstance(value, str) and value.strip() and value.isprintable() else None


def _params(raw: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    found = {}
    for name, value in raw.items():
        try:
            normalise({name: value}, "params")
        except ModelHubError as error:
            problems.append(f"parameters.json: {error.message}")
        else:
            found[name] = value
    return found


def _inputs(raw: Mapping[str, Any], problems: list[str]) -> list[RunInput]:
    found = []
    for name, one in raw.items():
        files = one.get("files") if isinstance(one, dict) else None
        if not is_name(name) or not isinstance(files, list):
            problems.append(f"inputs.json: the input {shown(name)} is left out: its name or form is wrong.")
            continue
        for file in files:
            made = _run_input(name, file) if isinstance(file, dict) else None
            if made is None:
                problems.append(f"inputs.json: a file of {shown(name)} without name or URI is left out.")
                continue
            found.append(made)
            if not made.files:
                problems.append(
                    f"inputs.json: {shown(made.uri, 200)} of {shown(name)} has no usable name, size and sha256."
                )
    return found


def _run_input(name: str, file: Mapping[str, Any]) -> RunInput | None:
    uri = _text(file.get("uri")) or _text(file.get("storage_uri"))
    path = _text(file.get("name"))
    if uri is None or path is None:
        return None
    checks = file.get("checksums")
    digest = str(checks.get("sha256")).lower() if isinstance(checks, dict) else ""
    size = file.get("size")
    good = (
        _SHA256.fullmatch(digest)
        and isinstance(size, int)
        and not isinstance(size, bool)
        and 0 <= size <= _LARGEST
        and not {"", ".", ".."} & set(path.split("/"))
    )
    files = (File(path, size, f"sha256:{digest}"),) if good and isinstance(size, int) else ()
    return RunInput(uri=masking.record(uri), name=name, files=files)
