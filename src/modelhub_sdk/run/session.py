"""A run while it is on: what it is made of is captured at its entry, what came of it at its exit."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from attrs import evolve

from modelhub_sdk import active, surroundings
from modelhub_sdk.arguments import listed, rendered
from modelhub_sdk.blobs import sources
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain import names
from modelhub_sdk.domain.entities import Alert, Datum, File, IngestReport, ModelVersion, Resolved
from modelhub_sdk.domain.events import Event, Sealer
from modelhub_sdk.domain.lineage import Code, Environment, RunInput, RunRecord, elsewhere
from modelhub_sdk.domain.uri import parse_uri
from modelhub_sdk.domain.values import Frozen, Value, normalise
from modelhub_sdk.errors import (
    ChildFailed,
    InvalidDocument,
    InvalidName,
    ModelHubError,
    NotAllowed,
    NotFound,
    shown,
)
from modelhub_sdk.formats import codec, manifest
from modelhub_sdk.hidden import hidden, shielded
from modelhub_sdk.index import data, runs
from modelhub_sdk.index.queries import View
from modelhub_sdk.own_sources import OwnSources
from modelhub_sdk.ports import Note
from modelhub_sdk.run import code, environment, masking, metrics
from modelhub_sdk.run import inputs as laying
from modelhub_sdk.run.outputs import OutputsFolder
from modelhub_sdk.run.reads import Read, Watcher

if TYPE_CHECKING:
    from modelhub_sdk.registry import Registry

log = logging.getLogger("modelhub_sdk")

HEARTBEAT = 300.0
"""Seconds between signs of life; a run is believed dead after three of them."""

DEFAULT_OUTPUTS = "outputs"

_EVERYTHING = ("code", "environment", "reads")
_MANY_INPUTS = 200  # plain files in the entry; of more the folders stand there, and all in a document
_MAX_EXCEPTION = 2000


class Run:
    """A run that is on. Made by `Registry.start_run`; a context manager, or ended by `finish`.

    Attributes:
        id: its id, the same for every attempt.
        name: what it is called.
        params: its parameters, a dict; may be changed until the end.
        outputs: the folder whose files become its outputs; None when it has none.
    """

    def __init__(
        self,
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
        facts: Mapping[str, Any] = Frozen(),
        prepare: Callable[[Run], None] | None = None,
    ) -> None:
        registry._writable()
        with registry._core.view() as view:
            registry._core.check_frozen(view)
        self.placed: tuple[laying.PlacedInput, ...] = ()
        self._registry = registry
        self._capture = _captured(capture)
        if keep not in ("annotated", "all"):
            raise InvalidDocument(f"keep is 'annotated' or 'all', not {shown(keep)}.")
        self._keep = keep
        self.id = registry._core.new_id() if id is None else _checked_id(id)
        self.params: dict[str, Any] = dict(params or {})
        self._tags = tuple(names.check_tag(tag) for tag in listed(tags, "tags"))
        self._pid = os.getpid()
        self._begun = time.monotonic()
        self._ended: RunRecord | None = None
        self._lock = threading.RLock()
        self._inputs: dict[tuple[str, str | None], RunInput] = {}
        self._opened: dict[
            str, dict[str, File]
        ] = {}  # of what was resolved: the files that were, by URI and path
        self._files_of: dict[str, dict[str, File]] = {}  # all of them
        self._paths: dict[str, Path] = {}
        self._alerts: list[Alert] = []
        self._files: dict[str, File] = {}
        self._stop = threading.Event()
        self._watcher: Watcher | None = None
        self._environ: dict[str, str | None] = {}
        self._project = (
            names.check_name(project, "project") if project is not None else registry._core.project
        )
        self._group = None if group is None else names.check_text(group, "group", 200)
        self._parent = active.own_run_id(registry) or _parent_of(registry, self.id)
        _checked_params(self.params)
        found = self._captured_code(
            None if commit is None else names.check_text(commit, "commit", 200) or None
        )
        self.name = _checked_name(name if name is not None else _name_of(found.code))
        self._code = found
        self._facts = dict(facts)
        self._outputs = _claimed(outputs)
        self._folder = Path(registry._core.cache().path) / "runs" / self.id
        self._attempt = 0
        self._metrics = metrics.Series(self._folder / "metrics.jsonl")
        try:
            active.begin(self)
            for key, uri in (inputs or {}).items():
                self.input(key, uri)
            if prepare is not None:
                prepare(self)
            self._start(roots)
        except BaseException:
            self._release()
            raise

    def __repr__(self) -> str:
        return f"<Run {self.name} {self.id}>"

    def __reduce__(self) -> Any:
        raise TypeError("A run that is on cannot be pickled or copied; pass run.id.")

    @property
    def outputs(self) -> Path | None:
        """The folder whose files become the outputs of the run."""
        return self._outputs.path if self._outputs is not None else None

    # --- while it is on ------------------------------------------------------------------------

    def log(self, values: Mapping[str, Any], *, step: int | None = None) -> None:
        """Record metrics, now, at *step* where there is one. Nothing is sent before the end of the run.

        Raises:
            InvalidDocument: a value that cannot be stored, or a step that is no whole number.
        """
        self._on()
        if step is not None:
            index = None if isinstance(step, bool) else getattr(type(step), "__index__", None)
            if index is None:
                raise InvalidDocument(f"step is a whole number, not {shown(step)}.")
            step = int(index(step))
        good = normalise(values, "metrics")
        self._metrics.add(good, step, self._registry._core.clock())

    def input(self, name: str, uri: Any = None) -> Path:
        """Resolve an input, note it as such, and return its path: a folder, or the file if it is one.

        Without *uri*, return the path of an input that the run was started with.

        Raises:
            NotFound: there is no such input; or what `Registry.resolve` raises.
        """
        self._on()
        good = names.check_text(name, "input", 64)
        if uri is None:
            if good not in self._paths:
                raise NotFound(
                    f"This run has no input {shown(good)}.",
                    hint=f"It has {', '.join(self._paths) or 'none'}.",
                )
            return self._paths[good]
        uri = hidden(uri)
        before = set(self._inputs)
        try:
            path = shielded(lambda: self._brought(good, uri.reveal()), ModelHubError)
        except ModelHubError as error:
            laying.named(error, good)
            raise
        for key in [key for key in self._inputs if key not in before]:
            one = self._inputs.pop(key)
            self._inputs[one.uri, good] = evolve(one, name=good)
        self._paths[good] = path
        return path

    def register(
        self,
        model: Any,
        files: Any,
        *,
        metrics: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Iterable[str] = (),
        note: str | None = None,
        fields: Mapping[str, Any] | None = None,
        ignore: Iterable[str] = (),
        copy: bool = True,
        progress: bool | None = None,
    ) -> ModelVersion:
        """Store files as the next version of a model, made by this run, and return it.

        The arguments are those of `Registry.register`; *metrics* are by default the last ones logged,
        *params* those of the run. The same files for the same model in one run are one version.

        Raises:
            What `Registry.register` raises.
        """
        files = hidden(files)
        self._on()
        return self._registry._register_files(
            model,
            files,
            run_id=self.id,
            metrics=self._metrics.last() if metrics is None else metrics,
            params=masking.mapping(self.params) if params is None else params,
            tags=tags,
            note=note,
            fields=fields,
            ignore=ignore,
            copy=copy,
            inputs=tuple(one.uri for one in self._inputs.values()),
            duration=round(time.monotonic() - self._begun, 3),
            progress=progress,
        )

    def attach(self, name: str, content: Any = None) -> None:
        """Put a file beside the run: a path, bytes, or a figure, as for `Registry.attach`."""
        self._on()
        if content is None:
            name, content = os.path.basename(os.fsdecode(name)), os.fsdecode(name)
        content = hidden(content)
        good = names.check_path(name, "attachment")
        with tempfile.TemporaryDirectory() as folder:
            files = hidden({good: rendered(content.reveal(), good, Path(folder))})
            (source,) = sources.collect(
                files,
                forbidden=self._registry._own(),
                own=OwnSources(self._registry._core),
            )
            self._files[good] = self._registry._core.artifacts().put(source)

    def call(
        self,
        command: Sequence[str] | str,
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> int:
        """Run a program as part of this run, and return its exit status.

        Its output passes through; lines that are one JSON object are metrics too. It finds the
        outputs folder in ``$VH_OUTPUTS_DIR``. What a Python program reads is seen.

        Args:
            command: a list of words, or a line for the shell.
            cwd: where it runs; by default here.
            env: variables to add.
            check: raise when it fails.

        Raises:
            ChildFailed: it ended with another status than 0, and *check* is set.
            NotFound: there is no such program.
        """
        from modelhub_sdk.run import child

        self._on()
        variables = {**os.environ, active.RUN_ID: self.id, **(env or {})}
        if self._watcher is not None:
            variables |= self._watcher.environment(variables)
        if self.outputs is not None:
            variables.setdefault("VH_OUTPUTS_DIR", str(self.outputs))
        status = child.run(
            command,
            cwd=cwd,
            env=variables,
            on_metrics=self._printed,
            on_problem=lambda text: self._alerts.append(Alert(text, file="stdout")),
        )
        if status and check:
            raise ChildFailed(
                f"{shown(masking.line(command) if isinstance(command, str) else masking.command(command), 200)}"
                f" ended with status {status}.",
                hint="Its output says why; check=False goes on.",
                status=status,
                run_id=self.id,
            )
        return status

    @property
    def registry(self) -> Registry:
        """The registry that it is recorded in."""
        return self._registry

    def note_input(self, found: RunInput) -> None:
        """Take note of an input that was brought here by other means than `input`."""
        self._inputs[found.uri, found.name] = found

    def note_alerts(self, alerts: Iterable[str]) -> None:
        """Record what a person should know."""
        self._alerts += [Alert(text) for text in alerts]

    def resolved(self, found: Resolved, asked: str, registry: str) -> None:
        """Take note of what was resolved from the registry of that id while this run was on.

        Names in another registry mean nothing here: what comes from there is called as lineage calls it.
        """
        version = found.version
        mine = registry in ("", self._registry.id)
        uri = found.uri if mine else elsewhere(registry, found.uri)
        self._inputs.setdefault((uri, None), RunInput(uri=uri))
        opened = self._opened.setdefault(uri, {})
        if isinstance(version, Datum):
            opened[version.name] = File(version.name, version.size, version.digest)
            return
        known = self._files_of.get(uri)
        if known is None:
            known = self._files_of[uri] = {file.path: file for file in version.files}
        inner = getattr(parse_uri(asked), "path", None)
        for name in found.files:
            path = name if inner is None else inner if inner in known else f"{inner}/{name}"
            if path in known:
                opened[path] = known[path]

    def belongs(self, registry: object) -> bool:
        """Return whether this run is recorded in *registry*."""
        return registry is self._registry and os.getpid() == self._pid

    def _printed(self, raw: Mapping[str, Any]) -> None:
        try:
            self.log({str(key): value for key, value in raw.items()})
        except ModelHubError as error:
            self._alerts.append(Alert(error.message, file="stdout"))

    def _brought(self, name: str, uri: Any) -> Path:
        """Bring an input here: a version into the cache, a URL into the run's folder; a local path is where it is."""
        if not isinstance(uri, (list, tuple)) and _is_ours(uri):
            return Path(self._registry.resolve(uri).path)
        wanted = laying.specs({name: uri})
        placed = laying.lay_out(self._registry, wanted, self._folder / "inputs", self.params)
        for found in placed[0].run_inputs():
            self._inputs[found.uri, name] = found
        self.note_alerts(placed[0].alerts)
        local = Path(uri) if isinstance(uri, (str, os.PathLike)) else None
        if local is not None and local.exists():
            return local
        folder = placed[0].folder or self._folder
        return folder / placed[0].files[0].name if len(placed[0].files) == 1 else folder

    # --- start -----------------------------------------------------------------------------------

    def _captured_code(self, commit: str | None) -> code.Captured:
        if "code" not in self._capture:
            return code.Captured(Code(commit=commit), "", None)
        return code.capture(commit=commit)

    def _start(self, roots: Iterable[str | os.PathLike[str]]) -> None:
        core = self._registry._core
        found = environment.capture() if "environment" in self._capture else Environment()
        packages = None
        if found.packages:
            packages = core.artifacts().put_bytes(codec.dumps(dict(sorted(found.packages.items()))))
        params = Frozen(masking.mapping(normalise(self.params, "params")))
        facts = self._facts
        if facts.get("code"):
            self._code = evolve(self._code, code=facts["code"], root=facts.get("root"))
        if facts.get("image"):
            found = evolve(found, image=facts["image"])
        if "reads" in self._capture:
            self._watcher = self._watching(roots)

        def decide(view: View, seal: Sealer) -> list[Event]:
            self._attempt = runs.attempts(view, self.id) + 1
            return [
                ev.RunStarted(
                    run_id=self.id,
                    name=self.name,
                    attempt=self._attempt,
                    project=self._project,
                    step=facts.get("step"),
                    pipeline=facts.get("pipeline"),
                    group=self._group,
                    parent=self._parent,
                    command=seal.maybe(_storable(facts.get("command") or self._code.command)),
                    code=self._code.code,
                    environment=evolve(found, packages=Frozen()),
                    packages=packages,
                    process=surroundings.process(),
                    params=params,
                    tags=self._tags,
                )
            ]

        self._started_with = params
        self._registry._commit("run:" + self.id, decide)
        if self._attempt == 1 and self._outputs is not None:
            self._outputs.note_what_is_there()
        self._set(active.RUN_ID, self.id)
        if self._watcher is not None:
            self._watcher.start()
        threading.Thread(target=self._beat, name="modelhub-run", daemon=True).start()
        atexit.register(self._at_exit)

    def _watching(self, roots: Iterable[str | os.PathLike[str]]) -> Watcher:
        core, root = self._registry._core, self._code.root
        exclude = [Path(core.cache().path), *map(Path, self._registry._own())]
        if self.outputs is not None:
            exclude.append(self.outputs)
        return Watcher(
            [Path.cwd(), *map(Path, listed(roots, "roots"))],
            exclude=exclude,
            tracked=frozenset if root is None else functools.partial(code.tracked_files, root),
            spool=self._folder / "reads",
        )

    def _set(self, name: str, value: str) -> None:
        self._environ.setdefault(name, os.environ.get(name))
        os.environ[name] = value

    def _beat(self) -> None:
        """Give a sign of life now and then; the one before is forgotten."""
        core = self._registry._core
        before: list[str] = []
        while not self._stop.wait(HEARTBEAT):
            now = {"kind": "heartbeat", "run": self.id, "at": codec.print_time(core.clock())}
            note = Note(uuid.uuid4().hex, codec.dumps(now))
            with suppress(ModelHubError):
                core.place.store.note([note])
                core.place.store.forget(before)
                before = [note.id]
        with suppress(ModelHubError):
            core.place.store.forget(before)

    # --- end -------------------------------------------------------------------------------------

    def __enter__(self) -> Run:  # noqa: PYI034  # there are no subclasses
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:  # a forked child leaves the block: the run is its parent's
            return
        if error is None:
            self.finish()
            return
        self.close(error)

    def finish(self) -> RunRecord:
        """End the run: ingest its outputs, record what it read and measured; return it. Safe to call twice.

        Raises:
            StoreUnavailable: the registry failed; the outputs are where they were, and
                ``reg.ingest(folder, run=id)`` stores them later.
        """
        return self._finish(None)

    def close(self, error: BaseException | None) -> None:
        """End a run that nobody ended, with its registry or its interpreter; what fails is logged."""
        if self._ended is not None or os.getpid() != self._pid:
            return
        try:
            self._finish(error)
        except ModelHubError as failure:
            log.error("The end of run %s could not be recorded: %s", self.id, failure)

    def _at_exit(self) -> None:
        """End as the script itself did: the interpreter keeps what ended it."""
        error = getattr(sys, "last_value", None)
        self.close(error if isinstance(error, BaseException) else None)

    def _on(self) -> None:
        if self._ended is not None or self._stop.is_set():
            raise NotAllowed(f"The run {self.name} has ended.", hint="Start another: reg.start_run(...).")

    def _finish(self, error: BaseException | None) -> RunRecord:
        with self._lock:
            if self._ended is not None:
                return self._ended
            duration = time.monotonic() - self._begun
            reads = self._watcher.stop() if self._watcher is not None else ()
            unseen = environment.unseen() if "reads" in self._capture else ()
            status, exit_status = _outcome(error)
            self._release(keep_files=True)
            inputs = self._all_inputs(reads)
            params = self._params()
            failure: ModelHubError | None = None
            try:
                report = self._ingest(status, inputs, params, duration)
                self._alerts += report.alerts
            except ModelHubError as problem:
                failure = problem
                self._alerts.append(Alert(f"The outputs were not stored: {problem.message}"))
            self._record(status, exit_status, error, inputs, params, unseen, duration)
            self._metrics.close()
            if self._outputs is not None:
                self._outputs.remove_if_empty()
            if failure is None:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._ended = self._registry.run(self.id)
        if failure is not None:
            raise failure
        return self._ended

    def _release(self, *, keep_files: bool = False) -> None:
        """Let go of everything but what is still needed to record the end."""
        active.end(self)
        self._stop.set()
        atexit.unregister(self._at_exit)
        if self._watcher is not None:
            self._watcher.stop()
        for name, value in self._environ.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._environ = {}
        if self._outputs is not None:
            self._outputs.release()
            if not keep_files:
                self._outputs.remove_if_empty()

    def _ingest(
        self, status: str, inputs: Sequence[RunInput], params: Mapping[str, Value], duration: float
    ) -> IngestReport:
        from modelhub_sdk.ingest import IngestSession, ingest

        if self._outputs is None or self._outputs.is_untouched():
            return IngestReport(versions=())
        return ingest(
            self._registry,
            self._outputs.path,
            run=self.id,
            metrics=self._metrics.last(),
            params=params,
            inputs=tuple(one.uri for one in inputs if _is_ours(one.uri)),
            idempotency_key=None,
            keep=self._keep,
            progress=None,
            session=IngestSession(
                failed=status != "completed",
                duration=round(duration, 3),
                attempt=self._attempt,
                before=self._outputs.before,
            ),
        )

    def _params(self) -> Mapping[str, Value]:
        """Return the parameters as they can be stored; one that cannot be is an alert."""
        try:
            return Frozen(masking.mapping(normalise(self.params, "params")))
        except InvalidDocument:
            good: dict[str, Value] = {}
            for key, value in self.params.items():
                try:
                    good |= normalise({key: value}, "params")
                except InvalidDocument as error:
                    self._alerts.append(Alert(error.message, key=str(key)))
            return Frozen(masking.mapping(good))

    def _record(
        self,
        status: str,
        exit_status: int | None,
        error: BaseException | None,
        inputs: Sequence[RunInput],
        params: Mapping[str, Value],
        unseen: Sequence[str],
        duration: float,
    ) -> None:
        core = self._registry._core
        changed = {key: value for key, value in params.items() if self._started_with.get(key, ...) != value}
        rows = self._metrics.rows()
        series = core.artifacts().put_bytes(codec.dumps(rows)) if rows else None
        short, document = _shortened(inputs)
        if document:
            digest = core.artifacts().put_bytes(codec.dumps(codec.unstructure_inputs(inputs)))
        trace = None
        if error is not None:
            text = "".join(traceback.format_exception(error))
            trace = core.artifacts().put_bytes(masking.text(text).encode("utf-8", "backslashreplace"))
        said = None
        if error is not None:
            said = masking.text("".join(traceback.format_exception_only(error)).strip())[:_MAX_EXCEPTION]
            said = _storable(said)
        script = code.notebook_digest() if self._code.code.entry == code.NOTEBOOK else None
        alerts = tuple(
            Frozen(_alert(alert)) for alert in self._alerts[:100] if alert.file in (None, "stdout")
        )

        def decide(view: View, seal: Sealer) -> list[Event]:
            if runs.finished(view, self.id, self._attempt) is not None:
                return []
            return [
                ev.RunFinished(
                    run_id=self.id,
                    status=status,
                    attempt=self._attempt,
                    duration=round(duration, 3),
                    exit_status=exit_status,
                    exception=seal.maybe(said),
                    traceback=trace,
                    params=Frozen(changed),
                    metrics=self._metrics.last(),
                    series=series,
                    inputs=short,
                    document=digest if document else None,
                    files=tuple(self._files.values()),
                    script=script,
                    unseen=tuple(unseen),
                    alerts=alerts,
                )
            ]

        self._registry._commit("run:" + self.id, decide)

    # --- inputs ------------------------------------------------------------------------------------

    def _all_inputs(self, reads: Sequence[Read]) -> tuple[RunInput, ...]:
        """Return what was asked for by name, what children resolved, and what was seen being read."""
        named = {one.uri for one in self._inputs.values() if one.name is not None}
        found = [
            one if one.files else evolve(one, files=tuple(self._opened.get(one.uri, {}).values()))
            for one in self._inputs.values()
            if one.name is not None or one.uri not in named
        ]
        uris = {one.uri for one in found}
        with suppress(ModelHubError):
            for use in self._registry._uses_of_run(self.id):
                if use not in uris:
                    uris.add(use)
                    found.append(RunInput(uri=use))
        known = {file.digest for one in found for file in one.files}
        plain = [read for read in reads if read.digest is None or read.digest not in known]
        return (*found, *self._linked(plain))

    def _linked(self, reads: Sequence[Read]) -> list[RunInput]:
        """Return files that were read; those that stand in the registry by what they stand there as."""
        digests = [read.digest for read in reads if read.digest is not None]
        homes: dict[str, str] = {}
        with suppress(ModelHubError), self._registry._core.view() as view:
            homes = data.homes(view, digests, besides=self.id)
        grouped: dict[str, list[File]] = {}
        plain = []
        for read in reads:
            file = File(read.name, read.size, read.digest or "")
            home = homes.get(file.digest)
            if home is not None and not read.changed:
                grouped.setdefault(home, []).append(file)
            else:
                plain.append(
                    RunInput(
                        uri="file:" + read.name,
                        files=(file,) if read.digest else (),
                        changed=read.changed or not read.digest,
                        seen=True,
                    )
                )
        linked = [RunInput(uri=uri, files=tuple(files), seen=True) for uri, files in grouped.items()]
        return [*linked, *plain]


# --- parts ------------------------------------------------------------------------------------------------


def _captured(capture: bool | Iterable[str]) -> tuple[str, ...]:
    if isinstance(capture, bool):
        return _EVERYTHING if capture else ()
    wanted = tuple(listed(capture, "capture"))
    for one in wanted:
        if one not in _EVERYTHING:
            raise InvalidDocument(
                f"capture={shown(one)} is not known.",
                hint=f"It is True, False, or some of {', '.join(_EVERYTHING)}.",
            )
    return wanted


def _checked_id(given: object) -> str:
    text = names.check_text(given, "run id", 200)
    if (
        not text
        or text != text.strip()
        or any(c.isspace() or c in "/\\:" for c in text)
        or text.startswith(".")
    ):
        raise InvalidDocument(
            f"{shown(text)} is not the id of a run.",
            hint="Use letters, digits, - and _: for example a job's id.",
        )
    return text


def _checked_name(given: object) -> str:
    text = names.check_text(given, "name of a run", 200)
    if not text.strip() or not text.isprintable():
        raise InvalidName(f"{shown(text)} is not the name of a run.", hint="Write one line of text.")
    return text


def _storable(text: str) -> str:
    """Return text of any origin as it can be stored: half surrogate pairs and NUL are escaped."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _checked_params(params: Mapping[str, Any]) -> None:
    normalise(params, "params")


def _name_of(found: Code) -> str:
    entry = found.entry or "run"
    return Path(entry.removeprefix("-m ")).stem or "run"


def _parent_of(registry: Registry, run_id: str) -> str | None:
    """Return the run that started this process, when it is recorded in the same registry."""
    parent = os.environ.get(active.RUN_ID)
    if not parent or parent == run_id:
        return None
    with registry._core.view() as view:
        return parent if runs.attempts(view, parent) else None


def _claimed(outputs: str | os.PathLike[str] | None) -> OutputsFolder | None:
    """Return the outputs folder. The default one is left out within another run, and where it cannot be made."""
    if outputs != DEFAULT_OUTPUTS:
        return OutputsFolder.claimed(outputs)
    try:
        return OutputsFolder.claimed(outputs, shared=active.current() is not None)
    except NotAllowed as error:
        log.warning("%s This run has no outputs folder.", error.message)
        return None


def _is_ours(uri: object) -> bool:
    return not isinstance(uri, str) or uri.startswith(("model://", "dataset://", "datum://"))


def _outcome(error: BaseException | None) -> tuple[str, int | None]:
    if error is None:
        return "completed", 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        return ("failed" if status else "completed"), status
    of_child = getattr(error, "status", None)  # of `ChildFailed`
    return "failed", of_child if isinstance(of_child, int) else 1


def _shortened(inputs: Sequence[RunInput]) -> tuple[tuple[RunInput, ...], bool]:
    """Return the inputs as they stand in an entry, and whether all of them need a document."""
    plain = [one for one in inputs if one.uri.startswith("file:")]
    count = sum(len(one.files) for one in inputs)
    if len(plain) <= _MANY_INPUTS and count <= 5 * _MANY_INPUTS:
        return tuple(inputs), False
    kept = [evolve(one, files=one.files[:5]) for one in inputs if not one.uri.startswith("file:")]
    if len(plain) <= _MANY_INPUTS:
        return (*kept, *plain), True
    folders: dict[str, list[File]] = {}
    for one in plain:
        for file in one.files:
            folders.setdefault(file.path.rpartition("/")[0] or ".", []).append(file)
    together = []
    for folder, files in sorted(folders.items())[:_MANY_INPUTS]:
        whole = File(folder + "/", sum(file.size for file in files), manifest.digest(manifest.ordered(files)))
        together.append(RunInput(uri=f"file:{folder}/", files=(whole,), seen=True))
    return (*kept, *together), True


def _alert(alert: Alert) -> dict[str, Any]:
    raw = {"message": alert.message[:500], "file": alert.file, "key": alert.key}
    return {name: value for name, value in raw.items() if value is not None}
