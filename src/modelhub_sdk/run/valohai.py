"""What Valohai puts around a program: config files, variables; and what can be read of them in a real execution.

The files are those that ``valohai-utils`` looks for (VALOHAI.md, sections 5 and 6).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import frozen

from modelhub_sdk.domain.entities import File
from modelhub_sdk.domain.lineage import RunInput
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.run import masking
from modelhub_sdk.run.inputs import PlacedInput, checksums

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
        # An input without files is left out: valohai-utils would try to download it.
        "inputs": {
            one.name: {"input_id": one.name, "files": _files(one, inputs_dir)} for one in inputs if one.files
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


@frozen
class Execution:
    """What is known of the Valohai execution that this process is; all but `id` may be unknown."""

    id: str
    number: int | None = None
    title: str | None = None
    step: str | None = None
    commit: str | None = None
    image: str | None = None
    project: str | None = None
    creator: str | None = None
    pipeline: str | None = None
    params: Mapping[str, Any] = Frozen()
    inputs: tuple[RunInput, ...] = ()


def execution(folder: str | os.PathLike[str] | None = None) -> Execution | None:
    """Return the Valohai execution around this process, None when there is none.

    Malformed files are as good as missing; nothing is ever raised.
    """
    place = Path(folder if folder is not None else os.environ.get("VH_CONFIG_DIR") or _CONFIG)
    raw = _read(place / "execution.json")
    found = _text(raw.get("valohai.execution-id"))
    if found is None:
        return None
    number = raw.get("valohai.execution-counter")
    return Execution(
        id=found,
        number=number if isinstance(number, int) else None,
        title=_text(raw.get("valohai.execution-title")),
        step=_text(raw.get("valohai.execution-step")),
        commit=_text(raw.get("valohai.commit-identifier")),
        image=_text(raw.get("valohai.execution-image")),
        project=_text(raw.get("valohai.project-name")),
        creator=_text(raw.get("valohai.creator-email")) or _text(raw.get("valohai.creator-name")),
        pipeline=_text(raw.get("valohai.pipeline-title")) or _text(raw.get("valohai.pipeline-id")),
        params=Frozen(_read(place / "parameters.json")),
        inputs=tuple(_inputs(_read(place / "inputs.json"))),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: object) -> str | None:
    return value[:300] if isinstance(value, str) and value.strip() and value.isprintable() else None


def _inputs(raw: Mapping[str, Any]) -> list[RunInput]:
    found = []
    for name, one in raw.items():
        files = one.get("files") if isinstance(one, dict) else None
        for file in files if isinstance(files, list) else []:
            if not isinstance(file, dict):
                continue
            uri = _text(file.get("uri")) or _text(file.get("storage_uri"))
            path = _text(file.get("name"))
            checks = file.get("checksums")
            digest = checks.get("sha256") if isinstance(checks, dict) else None
            size = file.get("size")
            if uri is None or path is None:
                continue
            good = isinstance(digest, str) and len(digest) == 64 and isinstance(size, int)
            rows = (File(path, int(size or 0), f"sha256:{digest}"),) if good else ()
            found.append(RunInput(uri=masking.url(uri), name=str(name)[:64], files=rows))
    return found
