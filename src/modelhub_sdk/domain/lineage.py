"""What a run was made of and what came of it: the frozen values of lineage."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from attrs import field, frozen

from modelhub_sdk.domain.entities import Alert, AuditRecord, File, Origin, Output, Shown, Use, few
from modelhub_sdk.domain.values import Frozen, Value

RunStatus = Literal["running", "completed", "failed", "interrupted"]
NodeKind = Literal["model", "dataset", "datum", "run", "code", "file", "use"]


@frozen
class Code:
    """The code of a run.

    `dirty` is None where git did not answer in time. `diff` digests the uncommitted changes
    (``sha256:<hex>``), None when there are none. `entry` is the script (or ``notebook``, or
    ``-m module``), relative to the repository where it lies inside; `script` its digest.
    """

    commit: str | None = None
    branch: str | None = None
    repository: str | None = None
    dirty: bool | None = None
    diff: str | None = None
    entry: str | None = None
    script: str | None = None


@frozen
class Environment:
    """What a run ran in. `hardware` has ``cpus``, ``memory`` (bytes), ``processor``, ``gpus`` where known.

    `unseen` names libraries that were imported and read files in ways that cannot be seen.
    """

    python: str | None = None
    platform: str | None = None
    image: str | None = None
    packages: Mapping[str, str] = Frozen()
    hardware: Mapping[str, Any] = Frozen()
    unseen: tuple[str, ...] = ()


@frozen
class RunInput:
    """Something that a run read.

    `uri` is pinned; a plain file's is ``file:<path relative to its root>``. `files` are what was
    read, with digests. `name` is that of the input, None for a file that was seen being read.
    `changed` means that the bytes changed while the run was on, and the digests may be the later ones.
    `tag` is what the store of a plain URL calls this state of it (ETag, version, generation).
    """

    uri: str
    name: str | None = None
    files: tuple[File, ...] = field(default=(), repr=few)
    changed: bool = False
    seen: bool = False
    tag: str | None = None


@frozen
class RunRecord(Shown):
    """A run, as it was at entry `seq` of the journal.

    `number` counts the registry's runs; `metrics` has the last value of each key; times are aware
    UTC, `duration` is in seconds. `exception` is the last line of what ended it, `traceback` all of it
    (None in listings), `status` ``interrupted`` when nothing has been heard of it. A text that was redacted is None.
    """

    id: str
    number: int
    name: str
    status: RunStatus
    started_at: datetime
    project: str | None = None
    step: str | None = None
    pipeline: str | None = None
    group: str | None = None
    parent: str | None = None
    ended_at: datetime | None = None
    duration: float | None = None
    user: str | None = None
    host: str | None = None
    command: str | None = None
    exit_status: int | None = None
    exception: str | None = None
    traceback: str | None = field(default=None, repr=False)
    params: Mapping[str, Value] = Frozen()
    metrics: Mapping[str, Value] = Frozen()
    tags: tuple[str, ...] = ()
    code: Code = field(factory=Code)
    environment: Environment = field(factory=Environment)
    inputs: tuple[RunInput, ...] = field(default=(), repr=few)
    outputs: tuple[Output, ...] = field(default=(), repr=few)
    versions: tuple[str, ...] = ()
    dataset_versions: tuple[str, ...] = ()
    datums: tuple[str, ...] = ()
    attachments: tuple[File, ...] = field(default=(), repr=few)
    alerts: tuple[Alert, ...] = ()
    attempts: int = 1
    seq: int = 0

    @property
    def uri(self) -> str:
        """``run:<id>``."""
        return f"run:{self.id}"

    def __str__(self) -> str:
        return f"run #{self.number} {self.name} ({self.status})"


@frozen
class Decision:
    """An approval or a rejection: what, when, by whom, why."""

    status: str
    at: datetime
    by: str | None = None
    reason: str | None = None


@frozen
class LineageRecord(Shown):
    """Everything that is known of where one thing comes from, and what became of it.

    `run` is what made it, None when it was registered by hand; `code`, `environment`, `params`,
    `metrics` and `inputs` are those of the run, or else what was said at the registration.
    `datasets` are the dataset versions among what it comes from, at any distance; `parents` the
    model versions and runs one step up; `used_by` who resolved it; `graph` is the whole picture, what
    it comes from and what came of it.

    Of a version that came from another registry (`origin`) run, code, environment, data and inputs are
    those that it had there; `history` is what happened to it there, newest first.
    """

    subject: str
    run: RunRecord | None = None
    code: Code = field(factory=Code)
    environment: Environment = field(factory=Environment)
    params: Mapping[str, Value] = Frozen()
    metrics: Mapping[str, Value] = Frozen()
    inputs: tuple[RunInput, ...] = field(default=(), repr=few)
    outputs: tuple[Output, ...] = field(default=(), repr=few)
    datasets: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    approvals: tuple[Decision, ...] = ()
    used_by: tuple[Use, ...] = field(default=(), repr=few)
    origin: Origin | None = None
    history: tuple[AuditRecord, ...] = field(default=(), repr=few)
    graph: LineageGraph = field(factory=lambda: LineageGraph("", (), ()), repr=False)


@frozen
class Node:
    """One thing in a lineage graph.

    `id` is its URI: ``model://churn/v3``, ``dataset://clicks/v7``, ``datum://<id>``, ``run:<id>``,
    ``code:<commit>``, ``file:sha256:<digest>``, ``use:<who or where>``; what is in another registry
    ``origin:<id of that registry>/<its URI there>``. `label` is what a person calls it,
    `status` that of a model version, a run or an outcome, `detail` a second line (when, by whom, size).
    """

    id: str
    kind: NodeKind
    label: str
    status: str | None = None
    detail: str | None = None


@frozen
class Edge:
    """*source* went into *target*; `label` says as what (the name of an input, ``uncommitted changes``)."""

    source: str
    target: str
    label: str | None = None


@frozen
class LineageGraph:
    """What a thing comes from, or what came of it: nodes, and edges in the direction of time.

    `cut` is True when the graph goes on beyond the depth or the size that was asked for.
    """

    root: str
    nodes: tuple[Node, ...] = field(repr=few)
    edges: tuple[Edge, ...] = field(repr=few)
    cut: bool = False

    def to_mermaid(self) -> str:
        """Return the graph as Mermaid text (``flowchart LR``)."""
        from modelhub_sdk.views import graph

        return graph.mermaid(self)

    def to_svg(self) -> str:
        """Return the graph as a picture, an SVG document."""
        from modelhub_sdk.views import graph

        return graph.svg(self)

    def save(self, path: Any) -> None:
        """Write the graph to *path*: ``.svg``, ``.mmd`` (Mermaid), ``.html`` or ``.json`` by its ending.

        Raises:
            InvalidName: another ending.
        """
        from modelhub_sdk.views import graph

        graph.save(self, path)

    def _repr_html_(self) -> str:
        from modelhub_sdk.views import graph

        return graph.html(self)

    def __str__(self) -> str:
        from modelhub_sdk.views import graph

        return graph.text(self)


def elsewhere(registry: str, node: str) -> str:
    """Return the id, in a graph here, of the *node* in the graph of another registry.

    Files and commits are the same everywhere.
    """
    return node if node.startswith(("file:sha256:", "code:", "origin:")) else f"origin:{registry}/{node}"


__all__ = [
    "Code",
    "Decision",
    "Edge",
    "Environment",
    "LineageGraph",
    "LineageRecord",
    "Node",
    "NodeKind",
    "RunInput",
    "RunRecord",
    "RunStatus",
    "elsewhere",
]
