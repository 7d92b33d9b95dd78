"""What users get back: frozen values, equal when equal, picklable, with no hidden connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar, overload

from attrs import field, frozen

from modelhub_sdk.domain.values import Frozen, Value

Status = Literal["pending", "approved", "rejected"]
T = TypeVar("T")


def one_line(text: str) -> str:
    """Return *text* as one printable line: what could move a cursor or turn the writing is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@frozen
class File:
    """One file of a version: its POSIX path, size in bytes, and ``sha256:<hex>`` digest."""

    path: str
    size: int
    digest: str


@frozen
class Comment:
    """What somebody said about a version. `text` is None once redacted."""

    at: datetime
    by: str | None
    text: str | None


@frozen
class Evaluation:
    """Metrics measured after the registration: dated, by their author, never overwritten."""

    at: datetime
    by: str | None
    metrics: Mapping[str, Value]
    data: str | None = None
    note: str | None = None
    files: tuple[File, ...] = ()


@frozen
class Attachment:
    """A file beside a version (a plot, a report); not part of its manifest."""

    name: str
    size: int
    digest: str
    at: datetime
    by: str | None = None


def few(items: Sequence[object]) -> str:
    """Return the repr of *items*, the first ones only when they are many: a version may have ten thousand files."""
    if len(items) <= _FEW:
        return repr(items)
    return f"({', '.join(map(repr, items[:_FEW]))}, … {len(items):,} in all)"


_FEW = 5


class Shown:
    """What ``print`` and notebooks show, by the views, imported when they are asked for."""

    __slots__ = ()

    def __str__(self) -> str:
        from modelhub_sdk.views import text

        return text.render(self)

    def _repr_html_(self) -> str:
        from modelhub_sdk.views import html

        return html.render(self)


@frozen
class Model(Shown):
    """A registered model, as it was at entry `seq` of the journal."""

    name: str
    title: str | None
    description: str | None
    fields: Mapping[str, Value]
    tags: tuple[str, ...]
    owner: str | None
    projects: tuple[str, ...]
    created_at: datetime
    created_by: str | None
    modified_at: datetime
    seq: int
    latest: int | None
    last_number: int
    counts: Mapping[str, int]
    aliases: Mapping[str, Mapping[int, int]]
    archived: bool = False

    @property
    def uri(self) -> str:
        """``model://<name>/``."""
        return f"model://{self.name}/"

    def __str__(self) -> str:
        return self.uri


@frozen
class Origin:
    """Where a version came from that was registered elsewhere first.

    `registry` is the id of that registry, `uri` the version there; `seq` and `chain` are number and chain
    digest of the entry that registered it: who has that journal can look it up.
    """

    registry: str
    uri: str
    seq: int
    chain: str


@frozen
class ModelVersion(Shown):
    """A numbered version of a model, as it was at entry `seq` of the journal.

    `size` is in bytes, `duration` (of the run that made it) in seconds, times are aware UTC.
    `digest` is that of the manifest. `purged` says that its files were given up; `purged_files` are the paths of
    those that were given up while the others stand. `external` tells the URL, by path, of each file that is kept by
    reference. A text that was redacted is None. `origin` is where it came from when it was copied or imported from
    another registry; `inputs` are then what they were called there.
    """

    uri: str
    model: str
    number: int
    status: Status
    files: tuple[File, ...] = field(repr=few)
    digest: str
    size: int
    metrics: Mapping[str, Value] = Frozen()
    evaluations: tuple[Evaluation, ...] = field(default=(), repr=few)
    params: Mapping[str, Value] = Frozen()
    tags: tuple[str, ...] = ()
    note: str | None = None
    description: str | None = None
    fields: Mapping[str, Value] = Frozen()
    inputs: tuple[str, ...] = ()
    created_at: datetime = field(kw_only=True)
    created_by: str | None = None
    decided_at: datetime | None = None
    decided_by: str | None = None
    reason: str | None = None
    run_id: str | None = None
    aliases: tuple[str, ...] = ()
    attachments: tuple[Attachment, ...] = field(default=(), repr=few)
    comments: tuple[Comment, ...] = field(default=(), repr=few)
    duration: float | None = None
    archived: bool = False
    purged: bool = False
    origin: Origin | None = None
    seq: int = 0
    purged_files: tuple[str, ...] = ()
    external: Mapping[str, str] = Frozen()

    def __str__(self) -> str:
        return self.uri


@frozen
class Alias(Shown):
    """A name that points at one version, or at several by weight (weights sum up to 100)."""

    model: str
    name: str
    weights: Mapping[int, int]
    at: datetime
    by: str | None
    reason: str | None = None
    seq: int = 0

    @property
    def number(self) -> int:
        """The version with the most weight; the highest of several."""
        return max(self.weights, key=lambda n: (self.weights[n], n))

    @property
    def uri(self) -> str:
        """``model://<model>/<alias>``."""
        return f"model://{self.model}/{self.name}"

    def __str__(self) -> str:
        return self.uri


@frozen
class Dataset(Shown):
    """A dataset, as it was at entry `seq` of the journal.

    `versions` are the names of its versions, oldest first; `latest` is what ``dataset://<name>/latest``
    means: the alias of that name, else the newest.
    """

    name: str
    title: str | None
    description: str | None
    fields: Mapping[str, Value]
    tags: tuple[str, ...]
    owner: str | None
    projects: tuple[str, ...]
    created_at: datetime
    created_by: str | None
    modified_at: datetime
    seq: int
    versions: tuple[str, ...] = field(repr=few)
    latest: str | None
    aliases: Mapping[str, str]

    @property
    def uri(self) -> str:
        """``dataset://<name>/``."""
        return f"dataset://{self.name}/"

    def __str__(self) -> str:
        return self.uri


@frozen
class DatasetVersion(Shown):
    """A version of a dataset: a name, and files that never change; `size` is in bytes.

    `number` counts the versions of the dataset from 1; `based_on` is the version that it started from.
    """

    uri: str
    dataset: str
    version: str
    number: int
    files: tuple[File, ...] = field(repr=few)
    digest: str
    size: int
    tags: tuple[str, ...] = ()
    fields: Mapping[str, Value] = Frozen()
    based_on: str | None = None
    created_at: datetime = field(kw_only=True)
    created_by: str | None = None
    run_id: str | None = None
    aliases: tuple[str, ...] = ()
    seq: int = 0

    def __str__(self) -> str:
        return self.uri


@frozen
class Datum(Shown):
    """One stored file with an id of its own. `name` is its path in the outputs, `properties` its sidecar's."""

    id: str
    name: str
    size: int
    digest: str
    properties: Mapping[str, Value] = Frozen()
    tags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    run_id: str | None = None
    created_at: datetime = field(kw_only=True)
    created_by: str | None = None
    seq: int = 0

    @property
    def uri(self) -> str:
        """``datum://<id>``."""
        return f"datum://{self.id}"

    def __str__(self) -> str:
        return self.uri


@frozen
class AuditRecord(Shown):
    """One thing that happened: when, who, what, to what, from where.

    `action` is the event's kind (``version.approved``); `detail` is a sentence for people;
    `via` says from where (library, host); `facts` are the event's own fields.
    """

    at: datetime
    actor: str | None
    action: str
    subject: str
    detail: str
    via: str | None
    seq: int
    facts: Mapping[str, Any] = Frozen()

    def __str__(self) -> str:
        return one_line(f"{self.at:%Y-%m-%d %H:%M:%S} {self.actor or '(redacted)'}: {self.detail}")


@frozen
class Use:
    """A version resolved: when, by whom, from where, under which name it was asked for."""

    id: str
    uri: str
    asked: str
    at: datetime
    actor: str | None
    host: str | None = None
    run_id: str | None = None


@frozen
class Verification(Shown):
    """What `verify` found. `ok` is True when there are no `problems` (one sentence each).

    `remarks` are about what is strange and damages nothing, such as things in the inbox that are no notes.
    """

    ok: bool
    problems: tuple[str, ...]
    entries: int
    blobs: int
    head: str
    remarks: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.ok


@frozen
class Alert:
    """Something in an ingested folder that could not be honoured; nothing was lost by it."""

    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        place = ":".join(str(p) for p in (self.file, self.line, self.column) if p is not None)
        return one_line(f"{place}: {self.message}" if place else self.message)


@frozen
class Output:
    """One file that a run wrote: with the properties and annotations of its sidecars."""

    path: str
    size: int
    digest: str
    properties: Mapping[str, Value] = Frozen()
    annotations: Mapping[str, Any] = Frozen()


@frozen
class IngestReport(Shown):
    """What `ingest` made of a folder of outputs."""

    versions: tuple[ModelVersion, ...] = field(repr=few)
    dataset_versions: tuple[str, ...] = ()
    datums: tuple[str, ...] = ()
    alerts: tuple[Alert, ...] = ()
    outputs: tuple[Output, ...] = field(default=(), repr=few)
    repeated: bool = False


@frozen
class Resolved(Shown):
    """A version that stands on this disk, whole and verified.

    `uri` is pinned (``model://name/v3``), `path` the folder, or the file when one file was asked
    for; `files` are its paths relative to `path`; `version` is the model version, dataset version or
    datum; `as_of` is when the registry was asked.
    """

    uri: str
    path: str
    files: tuple[str, ...] = field(repr=few)
    version: ModelVersion | DatasetVersion | Datum
    as_of: datetime

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.path


class Listing(Shown, Sequence[T], Generic[T]):
    """One page of an answer, read completely: a sequence of frozen values.

    `total` counts all that match, `next()` reads the page after this one.
    """

    __slots__ = ("_items", "_more", "total")

    def __init__(
        self, items: Sequence[T], total: int | None = None, more: Callable[[], Listing[T]] | None = None
    ) -> None:
        self._items = tuple(items)
        self.total = len(self._items) if total is None else total
        self._more = more

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Listing):
            return self._items == other._items
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # a page compares by content

    def __repr__(self) -> str:
        return f"<Listing of {len(self)} of {self.total}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Listing, (self._items, self.total)  # the next page needs the registry; a pickle has none

    def first(self) -> T | None:
        """Return the first item, or None."""
        return self._items[0] if self._items else None

    def next(self) -> Listing[T]:
        """Return the following page, empty after the last."""
        return self._more() if self._more else Listing(())

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one plain dict per item: mappings, lists and scalars only (times are ISO text)."""
        from modelhub_sdk.views import tables

        return tables.to_dicts(self)

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame``, one row per item, mappings as ``a.b`` columns.

        Raises:
            MissingExtra: pandas is not installed.
        """
        from modelhub_sdk.views import tables

        return tables.to_pandas(self)

    def save(self, path: Any) -> None:
        """Write the page to *path*: ``.csv`` or ``.json`` by its ending.

        Raises:
            InvalidName: another ending.
        """
        from modelhub_sdk.views import tables

        tables.save(self, path)


__all__ = [
    "Alert",
    "Alias",
    "Attachment",
    "AuditRecord",
    "Comment",
    "Dataset",
    "DatasetVersion",
    "Datum",
    "Evaluation",
    "File",
    "IngestReport",
    "Listing",
    "Model",
    "ModelVersion",
    "Origin",
    "Output",
    "Resolved",
    "Status",
    "Use",
    "Value",
    "Verification",
]


@frozen
class GarbageReport(Shown):
    """What `Registry.collect_garbage` found and did.

    Attributes:
        dry_run: whether nothing was changed.
        unneeded: how many stored files nothing needs, before anything was deleted. (In `Stats`, `unneeded` is
            their bytes: here those are `unneeded_size`.)
        unneeded_size: their bytes.
        condemned: how many were condemned now; they go after the grace.
        deleted: how many were deleted now.
        deleted_size: their bytes.
        waiting: how many are condemned and wait for their grace to end when the call ends: those that were
            condemned now, and those that were before.
        swept: unfinished files of killed writers that were removed.
        examples: some digests of what is unneeded.
    """

    dry_run: bool
    unneeded: int
    unneeded_size: int
    condemned: int = 0
    deleted: int = 0
    deleted_size: int = 0
    waiting: int = 0
    swept: int = 0
    examples: tuple[str, ...] = ()


@frozen
class Mention:
    """A text that names a person: the entry where it stands, what that is about, and what it is.

    `what` is what `Registry.redact` takes for it (``note``, ``reasons``, ``fields.x``), or the kind of an event.
    """

    entry: int
    subject: str
    what: str


@frozen
class ForgottenUser:
    """What `Registry.forget_user` did.

    Attributes:
        pseudonym: what is shown in place of the name from now on.
        entries: how many entries lost texts.
        texts: how many texts were erased.
        matched: how the person was named, and how often.
        mentions: texts that somebody typed and that name the person among other things. They were left as they
            are: read them, and `Registry.redact` those that must go.
        kept: events that have the name in what cannot be erased: names of things, tags, parameters, paths.
        alike: other users who may be the same person under another name. Forget each by a call of its own.
    """

    pseudonym: str
    entries: int
    texts: int
    matched: Mapping[str, int] = Frozen()
    mentions: tuple[Mention, ...] = field(default=(), repr=few)
    kept: tuple[Mention, ...] = field(default=(), repr=few)
    alike: tuple[str, ...] = ()


@frozen
class Stats(Shown):
    """Where the space is. Sizes in bytes.

    Attributes:
        artifacts: where the files are stored.
        entries: how many entries the journal has.
        models: how many registered models.
        versions: how many model versions.
        datasets: how many datasets.
        runs: how many runs.
        blobs: how many files are stored, each content once.
        size: their bytes.
        largest: models and datasets by the bytes that are stored for their versions, largest first; what versions
            share counts once for each model, and what is kept by reference takes no space.
        unneeded: the bytes that nothing needs: `Registry.collect_garbage` frees them. (In `GarbageReport`,
            `unneeded` counts files.) 0 while a manifest is missing: then that cannot be known.
        missing: how many needed files are not stored. The files of a manifest that is missing itself are not known,
            and not among them.
    """

    artifacts: str
    entries: int
    models: int
    versions: int
    datasets: int
    runs: int
    blobs: int
    size: int
    largest: tuple[tuple[str, int], ...] = ()
    unneeded: int = 0
    missing: int = 0


@frozen
class RepairItem:
    """Stored bytes that were damaged or missing.

    Attributes:
        digest: which bytes.
        size: how many; None where nothing says so.
        needed_by: versions, datums and runs that need them, at most twenty.
        problem: what was wrong, in one sentence.
    """

    digest: str
    size: int | None
    needed_by: tuple[str, ...]
    problem: str = ""


@frozen
class RepairReport(Shown):
    """What `Registry.repair` did. It is true when nothing damaged or missing is left.

    Attributes:
        source: where right bytes were looked for.
        checked: how many stored files were read.
        repaired: what was damaged or missing, and is stored again.
        not_found: what is damaged or missing still, because *source* does not have it either.
    """

    source: str
    checked: int
    repaired: tuple[RepairItem, ...] = ()
    not_found: tuple[RepairItem, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing damaged or missing is left."""
        return not self.not_found

    def __bool__(self) -> bool:
        return self.ok


@frozen
class CopyReport(Shown):
    """What `Registry.copy_to` did.

    Attributes:
        url: where the copy is.
        artifacts: where its files are.
        entries: how many journal entries were copied now.
        blobs: how many stored files were copied now.
        bytes: their size.
        missing: files that are needed, and were not stored here either.
        seconds: how long it took.
    """

    url: str
    artifacts: str
    entries: int
    blobs: int
    bytes: int
    missing: int
    seconds: float
