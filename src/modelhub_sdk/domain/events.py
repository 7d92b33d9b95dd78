"""The facts that a journal holds: a small closed union, named by what happened, additive for ever.

An `Entry` is what one commit appends. Names of fields and kinds are the stored format: never
rename one, never change its meaning; add a field with a default, or add a kind.

What people typed, and what names a person or a machine, is *sealed*: the event holds a salted
digest, and the text lies in the entry's private part, where it can be erased without breaking the
chain. A field of the type `Sealed` is such a digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, ClassVar, NewType

from attrs import field, frozen

from modelhub_sdk.domain.entities import File, Origin
from modelhub_sdk.domain.lineage import Code, Environment, RunInput
from modelhub_sdk.domain.values import Frozen, Value, from_json, number, to_json

Sealed = NewType("Sealed", str)
"""The hex sha256 of a 16-byte salt and a text in UTF-8."""

FORMAT = 1
"""The number of the stored format that this release writes, and the highest that it reads."""


class Sealer:
    """Seals the texts of one entry and keeps them for its private part."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self.texts: dict[str, tuple[str, str]] = {}

    def __call__(self, text: str) -> Sealed:
        """Return the digest that stands for *text* in the journal."""
        salt = self._entropy(16)
        digest = seal(salt, text)
        self.texts[digest] = (salt.hex(), text)
        return Sealed(digest)

    def maybe(self, text: str | None) -> Sealed | None:
        """Return the seal of *text*, None for None or an empty text."""
        return self(text) if text else None

    def value(self, value: Value) -> Sealed:
        """Return the seal of a field's value, kept as `printed_value`."""
        return self(printed_value(value))


def printed_value(value: Value) -> str:
    """Return a field's value as text that an index can compare: ``s:text``, ``n:number``, ``b:0`` or ``j:json``."""
    if isinstance(value, str):
        return "s:" + value
    if isinstance(value, bool):
        return f"b:{value:d}"
    if isinstance(value, (int, float)) and number(value) is not None:
        return "n:" + repr(value)
    return "j:" + json.dumps(to_json(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def seal(salt: bytes, text: str) -> str:
    """Return the hex digest of *text* under *salt*."""
    return hashlib.sha256(salt + text.encode()).hexdigest()


def unsealed_value(text: str | None) -> Value:
    """Return the field value that was printed as *text*; None when it was erased."""
    if text is None:
        return None
    if text.startswith("s:"):
        return text[2:]
    return text == "b:1" if text.startswith("b:") else from_json(json.loads(text[2:]))


@frozen
class Event:
    """One thing that happened. Never used directly."""

    kind: ClassVar[str] = ""

    @property
    def about(self) -> tuple[str, int]:
        """What it concerns, as the index keys it: a model's name, or ``dataset:<name>``, and a number (0: itself)."""
        return getattr(self, "model", ""), getattr(self, "number", 0)


# --- the registry -----------------------------------------------------------------------------------


@frozen
class RegistryCreated(Event):
    """The first event of every journal. `artifacts` is None where the bytes lie beside the journal."""

    kind: ClassVar[str] = "registry.created"
    id: str
    artifacts: str | None = None


@frozen
class SettingsChanged(Event):
    """Settings merged into those that were there; None removes one."""

    kind: ClassVar[str] = "registry.configured"
    settings: Mapping[str, Any]


@frozen
class RegistryFrozen(Event):
    """Nothing may be changed from here on; it is read as before."""

    kind: ClassVar[str] = "registry.frozen"
    reason: Sealed | None = None


@frozen
class RegistryThawed(Event):
    """It may be changed again."""

    kind: ClassVar[str] = "registry.thawed"
    reason: Sealed | None = None


@frozen
class Redacted(Event):
    """Private texts that were erased, as (entry, digest); `what` names them in words."""

    kind: ClassVar[str] = "text.redacted"
    model: str
    number: int
    what: str
    items: tuple[tuple[int, str], ...]
    reason: Sealed | None = None


@frozen
class UserForgotten(Event):
    """A person's name was erased from the private texts; `pseudonym` is shown where it stood.

    Items are (entry, digest). Behind those of `names` stood the name itself, behind those of `values` a field's
    value that was the name; both are shown as the pseudonym from now on, in the past too. What is behind those of
    `erased` named the person among other things (a host, a command, a path) and is gone. The pseudonym is random,
    never derived from the name.

    The items stand here and in no document, because a fold reads nothing but the entry. So many that they do not
    fit into one entry go by several of the same pseudonym. Then the text behind `plan`, in the private part of
    the first, lists the rest (entries and digests, no names), so that whoever comes after a killed process can
    append it; the last one erases the plan.
    """

    kind: ClassVar[str] = "user.forgotten"
    pseudonym: str
    names: tuple[tuple[int, str], ...] = ()
    values: tuple[tuple[int, str], ...] = ()
    erased: tuple[tuple[int, str], ...] = ()
    plan: Sealed | None = None
    reason: Sealed | None = None


def erased_by(event: Event) -> tuple[tuple[int, str], ...]:
    """Return the private texts that *event* erases, as (entry, digest)."""
    if isinstance(event, Redacted):
        return event.items
    if isinstance(event, UserForgotten):
        return (*event.names, *event.values, *event.erased)
    return ()


# --- models -----------------------------------------------------------------------------------------


@frozen
class ModelCreated(Event):
    """A registered model came to be. `texts`: title, description, owner."""

    kind: ClassVar[str] = "model.created"
    model: str
    texts: Mapping[str, Sealed | None] = Frozen()
    fields: Mapping[str, Sealed | None] = Frozen()
    tags: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()


@frozen
class ModelEdited(Event):
    """Only what changed; a text or field that is None was removed."""

    kind: ClassVar[str] = "model.edited"
    model: str
    texts: Mapping[str, Sealed | None] = Frozen()
    fields: Mapping[str, Sealed | None] = Frozen()
    add_tags: tuple[str, ...] = ()
    remove_tags: tuple[str, ...] = ()
    add_projects: tuple[str, ...] = ()
    remove_projects: tuple[str, ...] = ()


@frozen
class AliasMoved(Event):
    """An alias points at these versions from now on: number -> weight, weights sum up to 100."""

    kind: ClassVar[str] = "alias.moved"
    model: str
    alias: str
    weights: Mapping[int, int]
    reason: Sealed | None = None


@frozen
class AliasDeleted(Event):
    """An alias points at nothing from now on."""

    kind: ClassVar[str] = "alias.deleted"
    model: str
    alias: str
    reason: Sealed | None = None


# --- versions ---------------------------------------------------------------------------------------


@frozen
class External:
    """Bytes of a version that are not in the store: path and digest in the version, a URL, and its store's version of it."""

    path: str
    digest: str
    url: str
    version: str | None = None


@frozen
class VersionRegistered(Event):
    """A numbered version, pending. Its files stand here, or in the document `document` if they are many.

    `key` is its idempotency key; the text behind `content` digests what the key stands for. `origin` is where
    it was registered first, when that was elsewhere; the text behind `history` is its lineage and audit there.
    `external` says where the bytes of all its files are, when they are kept by reference.
    """

    kind: ClassVar[str] = "version.registered"
    model: str
    number: int
    manifest: str
    size: int
    files: tuple[File, ...] = ()
    document: str | None = None
    metrics: Mapping[str, Value] = Frozen()
    params: Mapping[str, Value] = Frozen()
    tags: tuple[str, ...] = ()
    texts: Mapping[str, Sealed | None] = Frozen()
    fields: Mapping[str, Sealed | None] = Frozen()
    inputs: tuple[str, ...] = ()
    run_id: str | None = None
    duration: float | None = None
    content: Sealed | None = None
    key: str | None = None
    origin: Origin | None = None
    history: Sealed | None = None
    external: tuple[External, ...] = ()


@frozen
class VersionEdited(Event):
    """Only what changed; a text or field that is None was removed."""

    kind: ClassVar[str] = "version.edited"
    model: str
    number: int
    texts: Mapping[str, Sealed | None] = Frozen()
    fields: Mapping[str, Sealed | None] = Frozen()
    add_tags: tuple[str, ...] = ()
    remove_tags: tuple[str, ...] = ()


@frozen
class VersionCommented(Event):
    """Somebody said something about a version."""

    kind: ClassVar[str] = "version.commented"
    model: str
    number: int
    text: Sealed


@frozen
class VersionAttached(Event):
    """A file beside a version; the same name again replaces what is shown, the history keeps both."""

    kind: ClassVar[str] = "version.attached"
    model: str
    number: int
    name: str
    size: int
    digest: str


@frozen
class EvaluationAdded(Event):
    """Metrics measured after the registration."""

    kind: ClassVar[str] = "version.evaluated"
    model: str
    number: int
    metrics: Mapping[str, Value]
    data: str | None = None
    files: tuple[File, ...] = ()
    note: Sealed | None = None


@frozen
class VersionApproved(Event):
    """Approved, by the entry's actor."""

    kind: ClassVar[str] = "version.approved"
    model: str
    number: int
    reason: Sealed | None = None


@frozen
class VersionRejected(Event):
    """Rejected, by the entry's actor."""

    kind: ClassVar[str] = "version.rejected"
    model: str
    number: int
    reason: Sealed | None = None


@frozen
class VersionReopened(Event):
    """Pending again."""

    kind: ClassVar[str] = "version.reopened"
    model: str
    number: int
    reason: Sealed | None = None


@frozen
class Archived(Event):
    """Put away; number 0 means the model itself."""

    kind: ClassVar[str] = "archived"
    model: str
    number: int
    reason: Sealed | None = None


@frozen
class Restored(Event):
    """Taken out of the archive; number 0 means the model itself."""

    kind: ClassVar[str] = "restored"
    model: str
    number: int
    reason: Sealed | None = None


@frozen
class VersionPurged(Event):
    """Files given up for good: `paths` of the version, all of them when None."""

    kind: ClassVar[str] = "version.purged"
    model: str
    number: int
    paths: tuple[str, ...] | None = None
    reason: Sealed | None = None


# --- bytes that nothing needs -----------------------------------------------------------------------


@frozen
class BlobsChanged(Event):
    """What becomes of stored bytes that nothing needs. Never used directly.

    `state` is what they are from here on; None: nothing is known against them.
    """

    state: ClassVar[str | None] = None
    digests: tuple[str, ...]


@frozen
class BlobsCondemned(BlobsChanged):
    """Nothing needs these bytes; they go after a grace unless something comes to need them."""

    kind: ClassVar[str] = "blobs.condemned"
    state: ClassVar[str | None] = "condemned"


@frozen
class BlobsSpared(BlobsChanged):
    """Condemned bytes that this very entry has come to need: they stay."""

    kind: ClassVar[str] = "blobs.spared"


@frozen
class BlobsDeleting(BlobsChanged):
    """From here on nobody may rely on these bytes: they are being deleted.

    `lease` are the seconds after this entry in which its collector may begin to delete one; None: 20, as in the
    first releases. `worker` tells the collector's process from all others, so that its neighbours see when it dies.
    """

    kind: ClassVar[str] = "blobs.deleting"
    state: ClassVar[str | None] = "deleting"
    lease: float | None = None
    worker: str | None = None


@frozen
class BlobsDeleted(BlobsChanged):
    """These bytes are gone; whoever needs them stores them again."""

    kind: ClassVar[str] = "blobs.deleted"
    state: ClassVar[str | None] = "deleted"


# --- data -------------------------------------------------------------------------------------------


@frozen
class _OfDataset(Event):
    """What concerns a dataset, or its version *number*; the first has number 1."""

    dataset: str

    @property
    def about(self) -> tuple[str, int]:
        """The dataset and, where there is one, the number of the version."""
        return "dataset:" + self.dataset, getattr(self, "number", 0)


@frozen
class DatasetCreated(_OfDataset):
    """A dataset came to be. `texts`: title, description, owner."""

    kind: ClassVar[str] = "dataset.created"
    texts: Mapping[str, Sealed | None] = Frozen()
    fields: Mapping[str, Sealed | None] = Frozen()
    tags: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()


@frozen
class DatasetVersionCreated(_OfDataset):
    """A version of a dataset: a name, and files that never change.

    `base` is the URI of the version that it started from, `inputs` what its files were copied from in this
    registry. The rest is as in `VersionRegistered`.
    """

    kind: ClassVar[str] = "dataset_version.created"
    version: str
    number: int
    manifest: str
    size: int
    files: tuple[File, ...] = ()
    document: str | None = None
    base: str | None = None
    tags: tuple[str, ...] = ()
    fields: Mapping[str, Sealed | None] = Frozen()
    run_id: str | None = None
    content: Sealed | None = None
    key: str | None = None
    inputs: tuple[str, ...] = ()


@frozen
class DatasetAliasMoved(_OfDataset):
    """An alias points at this version from now on."""

    kind: ClassVar[str] = "dataset_alias.moved"
    alias: str
    version: str
    reason: Sealed | None = None


@frozen
class DatasetAliasDeleted(_OfDataset):
    """An alias points at nothing from now on."""

    kind: ClassVar[str] = "dataset_alias.deleted"
    alias: str
    reason: Sealed | None = None


@frozen
class DatumNoted:
    """One stored file with an id of its own."""

    id: str
    name: str
    size: int
    digest: str
    tags: tuple[str, ...] = ()
    fields: Mapping[str, Value] = Frozen()


@frozen
class DatumsStored(Event):
    """Outputs that were stored for their own sake; `fields` of each are the properties of its sidecar."""

    kind: ClassVar[str] = "datums.stored"
    datums: tuple[DatumNoted, ...]
    run_id: str | None = None

    @property
    def about(self) -> tuple[str, int]:
        """The run."""
        return ("run:" + self.run_id if self.run_id else ""), 0


@frozen
class DatumAliasMoved(Event):
    """The alias of a datum points at this one from now on."""

    kind: ClassVar[str] = "datum_alias.moved"
    alias: str
    datum: str

    @property
    def about(self) -> tuple[str, int]:
        """The datum."""
        return "datum:" + self.datum, 0


# --- runs and uses ----------------------------------------------------------------------------------


@frozen
class RunStarted(Event):
    """A run began, or (attempt 2, 3 …) went on after it was interrupted.

    `packages` is the document of what was installed; `process` tells its own host whether it lives.
    """

    kind: ClassVar[str] = "run.started"
    run_id: str
    name: str
    attempt: int = 1
    project: str | None = None
    step: str | None = None
    pipeline: str | None = None
    group: str | None = None
    parent: str | None = None
    command: Sealed | None = None
    code: Code = field(factory=Code)
    environment: Environment = field(factory=Environment)
    packages: str | None = None
    process: str | None = None
    params: Mapping[str, Value] = Frozen()
    tags: tuple[str, ...] = ()

    @property
    def about(self) -> tuple[str, int]:
        """The run, and which attempt at it."""
        return "run:" + self.run_id, self.attempt


@frozen
class RunFinished(Event):
    """A run ended: ``completed`` or ``failed``.

    `params` are those that were set or changed while it was on, `metrics` the last value of each key,
    `series` the document of all of them, `traceback` that of what stopped it. `inputs` stand in the
    document `document` if they are many.
    """

    kind: ClassVar[str] = "run.finished"
    run_id: str
    status: str
    attempt: int = 1
    duration: float | None = None
    exit_status: int | None = None
    exception: Sealed | None = None
    traceback: str | None = None
    params: Mapping[str, Value] = Frozen()
    metrics: Mapping[str, Value] = Frozen()
    series: str | None = None
    inputs: tuple[RunInput, ...] = ()
    document: str | None = None
    files: tuple[File, ...] = ()
    script: str | None = None
    unseen: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    alerts: tuple[Mapping[str, Any], ...] = ()

    @property
    def about(self) -> tuple[str, int]:
        """The run, and which attempt at it."""
        return "run:" + self.run_id, self.attempt


@frozen
class OutputsIngested(Event):
    """A folder of outputs was read: `outputs` (or the document that lists them), what came of it, alerts.

    `key` makes a repeated ingest change nothing.
    """

    kind: ClassVar[str] = "outputs.ingested"
    key: str
    run_id: str | None = None
    outputs: tuple[Mapping[str, Any], ...] = ()
    document: str | None = None
    versions: tuple[str, ...] = ()
    dataset_versions: tuple[str, ...] = ()
    datums: tuple[str, ...] = ()
    alerts: tuple[Mapping[str, Any], ...] = ()

    @property
    def about(self) -> tuple[str, int]:
        """The run."""
        return ("run:" + self.run_id if self.run_id else ""), 0


@frozen
class UseNoted:
    """One use, as it left the inbox."""

    id: str
    model: str
    number: int
    asked: str
    at: datetime
    actor: Sealed | None = None
    host: Sealed | None = None
    run_id: str | None = None


@frozen
class UsesRecorded(Event):
    """Uses taken from the inbox."""

    kind: ClassVar[str] = "uses.recorded"
    uses: tuple[UseNoted, ...]


@frozen
class Unknown(Event):
    """An event of a kind that this release does not know: kept, shown in audit, not folded."""

    name: str = ""
    data: Mapping[str, Any] = Frozen()


KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        RegistryCreated,
        SettingsChanged,
        RegistryFrozen,
        RegistryThawed,
        Redacted,
        UserForgotten,
        ModelCreated,
        ModelEdited,
        AliasMoved,
        AliasDeleted,
        VersionRegistered,
        VersionEdited,
        VersionCommented,
        VersionAttached,
        EvaluationAdded,
        VersionApproved,
        VersionRejected,
        VersionReopened,
        Archived,
        Restored,
        VersionPurged,
        BlobsCondemned,
        BlobsSpared,
        BlobsDeleting,
        BlobsDeleted,
        DatasetCreated,
        DatasetVersionCreated,
        DatasetAliasMoved,
        DatasetAliasDeleted,
        DatumsStored,
        DatumAliasMoved,
        RunStarted,
        RunFinished,
        OutputsIngested,
        UsesRecorded,
    )
}
"""Kind name -> class: the closed union."""


def stored_files(event: VersionRegistered | DatasetVersionCreated, files: Iterable[File]) -> set[str]:
    """Return the digests of the *files* of a version, none when they are kept by reference: then they are not stored."""
    return set() if getattr(event, "external", ()) else {file.digest for file in files}


def blobs_of(event: Event) -> set[str]:
    """Return the digests of the blobs that *event* says are stored. Those in a manifest document are not among them."""
    found: set[str | None] = set()
    if isinstance(event, (VersionRegistered, DatasetVersionCreated)):
        found = {event.document, *stored_files(event, event.files)}
    elif isinstance(event, VersionAttached):
        found = {event.digest}
    elif isinstance(event, EvaluationAdded):
        found = {file.digest for file in event.files}
    elif isinstance(event, DatumsStored):
        found = {datum.digest for datum in event.datums}
    elif isinstance(event, RunStarted):
        found = {event.packages}
    elif isinstance(event, RunFinished):
        found = {event.series, event.document, event.traceback, *(file.digest for file in event.files)}
    elif isinstance(event, OutputsIngested):
        found = {event.document, *(row["digest"] for row in event.outputs if row.get("kept"))}
    return {digest for digest in found if digest}


@frozen
class Entry:
    """What one commit appends: all of it, or none.

    `scope` is the model, dataset, project, run or registry that it concerns (``model:churn``).
    `private` maps each seal to its text; a seal that is missing was erased. `documents` are the
    events as canonical JSON, where an entry was decoded: they need not be printed again.
    """

    seq: int
    id: str
    scope: str
    at: datetime
    actor: Sealed
    via: Mapping[str, str]
    events: tuple[Event, ...]
    private: Mapping[str, str] = field(factory=Frozen, eq=False)
    documents: tuple[str, ...] = field(default=(), eq=False, repr=False)
    format: int = FORMAT
    min_reader: int = 1
