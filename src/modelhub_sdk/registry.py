"""The registry: what users call. The reads are in `reads`; here are the verbs."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from attrs import asdict, evolve

from modelhub_sdk import active, datasets
from modelhub_sdk.arguments import (
    changes_of,
    checked_key,
    content_digest,
    input_uri,
    listed,
    reason_of,
    rendered,
    seal_picker,
    settings_of,
    switch,
    weights_of,
)
from modelhub_sdk.core import Core, log, opened
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain import names, rules
from modelhub_sdk.domain.entities import (
    Alias,
    CopyReport,
    Dataset,
    DatasetVersion,
    File,
    ForgottenUser,
    GarbageReport,
    IngestReport,
    Model,
    ModelVersion,
    RepairReport,
    Resolved,
    Stats,
)
from modelhub_sdk.domain.events import Event, Sealer
from modelhub_sdk.domain.lineage import RunRecord
from modelhub_sdk.domain.values import Frozen, Value, normalise, normalise_fields
from modelhub_sdk.errors import (
    DigestMismatch,
    InvalidDocument,
    InvalidName,
    InvalidURI,
    ModelHubError,
    NotFound,
    Purged,
    nearest,
    shown,
)
from modelhub_sdk.formats import manifest
from modelhub_sdk.hidden import HiddenOptions, hidden, hidden_place, revealed, shielded
from modelhub_sdk.index import data, runs
from modelhub_sdk.index.queries import View, fresh
from modelhub_sdk.own_sources import OwnSources
from modelhub_sdk.reads import RegistryView
from modelhub_sdk.references import (
    DatasetRef,
    Ref,
    dataset_exists,
    dataset_uri,
    fixed_uri,
    found_version,
    model_name,
    model_or_version,
    no_alias,
    pin,
    pin_dataset,
    version_uri,
)
from modelhub_sdk.uses import drain, inbox

if TYPE_CHECKING:
    from modelhub_sdk.blobs.elsewhere import Reference
    from modelhub_sdk.blobs.sources import Source
    from modelhub_sdk.bundles import Arrival
    from modelhub_sdk.domain.uri import ModelURI
    from modelhub_sdk.run.inputs import PlacedInput
    from modelhub_sdk.run.session import Run

_INLINE_FILES = 1000
_INLINE_PATHS = 100_000  # characters of all paths together; more of either goes into a document
_DRAIN_EVERY = 60.0  # seconds between looks into the inbox by one handle


class Registry(RegistryView):
    """An open registry. Made by `Registry.open` (or ``modelhub_sdk.open``), never directly.

    A context manager; may be shared by threads, and used after a fork.
    """

    def __init__(self, core: Core) -> None:
        if not isinstance(core, Core):
            raise TypeError("Open a registry with modelhub_sdk.open(url), not by calling Registry(url).")
        super().__init__(core)

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str] | None = None,
        *,
        artifacts: str | os.PathLike[str] | None = None,
        user: str | None = None,
        project: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        read_only: bool = False,
        create: bool | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Registry:
        """Open a registry; a local one is made on first use.

        Args:
            url: ``sqlite:///models.db``, ``postgresql://user@host/database``, a folder, or an object
                store (``s3://bucket/prefix``). Default: ``$MODELHUB_REGISTRY``, else SQLite in the
                user's data folder.
            artifacts: where bytes are kept, a folder or any fsspec URL; a fact of the registry, needed
                when one is made on PostgreSQL. Default: ``$MODELHUB_ARTIFACTS``, else beside the registry.
            user: who acts. Default: ``$MODELHUB_USER``, git's user.email, the login name.
            project: the project of models made through this handle. Default: ``$MODELHUB_PROJECT``.
            cache_dir: the cache of this user. Default: ``$MODELHUB_CACHE_DIR``, else the user's cache folder.
            read_only: refuse every change, and open SQLite without any write.
            create: True makes a registry where there is none, also on PostgreSQL and object stores;
                False never; None makes local ones.
            storage_options: for the fsspec driver of an object store, that of the journal or the artifacts; where
                neither is on one, of the URLs that files are registered from, and of inputs.

        Raises:
            InvalidURI: *url* names no store.
            NotFound: there is no registry, and it may not be made.
            StoreUnavailable, CredentialsRefused: the store does not answer, or refuses.
            UnsafeStore: the place cannot keep a journal safely.
        """
        url, artifacts = hidden_place(url), hidden_place(artifacts)
        storage_options = HiddenOptions(storage_options)
        return cls(
            opened(
                url,
                artifacts=artifacts,
                user=user,
                project=project,
                cache_dir=cache_dir,
                read_only=read_only,
                create=create,
                storage_options=storage_options,
            )
        )

    def __enter__(self) -> Registry:  # noqa: PYI034  # there are no subclasses
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        active.close(self, error)
        self.close()

    def close(self) -> None:
        """End the runs that are still on, and release connections. Safe to call twice."""
        if not self._core.closed:
            active.close(self, None)
        self._core.close()

    def __dask_tokenize__(self) -> tuple[str, str, str]:
        # Without it dask would pickle the registry to tell it from others, and it cannot be pickled.
        return ("modelhub_sdk.Registry", self.id, self.url)

    @property
    def user(self) -> str:
        """Who acts through this handle."""
        return self._core.actor

    # --- models --------------------------------------------------------------------------------

    def create_model(
        self,
        name: str,
        *,
        title: str | None = None,
        description: str | None = None,
        owner: str | None = None,
        tags: Iterable[str] = (),
        fields: Mapping[str, Any] | None = None,
        projects: Iterable[str] = (),
    ) -> Model:
        """Make a registered model and return it.

        Args:
            name: lower-case letters, digits, ``.``, ``_``, ``-``; never reused for another thing.
            title: free text.
            description: markdown.
            owner: for example ``"team:risk"``.
            tags: free texts.
            fields: values of your own by name.
            projects: names like model names.

        Raises:
            InvalidName: the name cannot be used; the error has the nearest good one.
            Conflict: the model exists.
        """
        good = names.check_name(name)
        changes = changes_of(
            title=title, description=description, owner=owner, fields=fields, tags=tags, projects=projects
        )
        if self._core.project and not changes.projects:
            changes = evolve(changes, projects=(self._core.project,))
        self._commit("model:" + good, lambda view, seal: rules.create_model(view, seal, good, changes))
        return self.model(good)

    def edit_model(
        self,
        ref: Ref,
        *,
        description: str | None = None,
        title: str | None = None,
        owner: str | None = None,
        fields: Mapping[str, Any] | None = None,
        tags: Iterable[str] | None = None,
        add_tags: Iterable[str] = (),
        remove_tags: Iterable[str] = (),
        projects: Iterable[str] | None = None,
        if_seq: int | None = None,
    ) -> Model:
        """Change a model and return it. What is not passed stays; every edit keeps its history.

        *fields* merge, and None removes one; *tags* and *projects* replace; an empty text removes it.
        With ``if_seq=model.seq`` a change that somebody else made meanwhile is a Conflict.

        Raises:
            NotFound: there is no such model.
            Conflict: it changed since *if_seq*.
        """
        name = model_name(ref)
        changes = changes_of(
            title=title,
            description=description,
            owner=owner,
            fields=fields,
            tags=tags,
            add_tags=add_tags,
            remove_tags=remove_tags,
            projects=projects,
        )

        def decide(view: View, seal: Sealer) -> list[Event]:
            rules.model_exists(view, name)
            return rules.edit_model(view, seal, name, view.model(name), changes, if_seq)

        self._commit("model:" + name, decide)
        return self.model(name)

    # --- versions ------------------------------------------------------------------------------

    def register(
        self,
        model: Ref,
        files: Any,
        *,
        metrics: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Iterable[str] = (),
        note: str | None = None,
        fields: Mapping[str, Any] | None = None,
        inputs: Iterable[str] = (),
        ignore: Iterable[str] = (),
        copy: bool = True,
        idempotency_key: str | None = None,
        progress: bool | None = None,
    ) -> ModelVersion:
        """Store files as the next version of a model, pending, and return it. The model is made if need be.

        Args:
            model: its name, or a value.
            files: a path, a folder, a list of those, or ``{path in the version: source path, bytes or URL}``. A
                ``model://``, ``dataset://`` or ``datum://`` URI means what this registry has under it now, by the
                rules of `resolve`; it becomes an input, with the version that it meant.
            metrics: numbers by name; nested mappings become ``a.b``.
            params: values by name, likewise.
            tags: free texts.
            note: a release note.
            fields: values of your own by name.
            inputs: URIs of what it was made from.
            ignore: patterns of files to leave out.
            copy: False keeps the bytes where they are: *files* are then URLs (one that ends with a slash means
                all below) under the prefixes that ``configure(external=)`` allows. They are read once now, for
                their digests, and checked whenever they are read later.
            idempotency_key: the same key again, with the same content, gives the same version.
            progress: show a bar, or not; by default when a person is watching.

        Raises:
            InvalidName, InvalidDocument: a path, a value or a text that cannot be stored.
            NotFound, NotAllowed: a file that is not there, or may not be read.
            NotApproved, Purged: a source in this registry that may not be resolved.
            Conflict: a file changed while it was read.
            KeyReused: the key was used for other content.
        """
        files = hidden(files)
        return self._register_files(
            model,
            files,
            note=note,
            fields=fields,
            metrics=metrics,
            params=params,
            tags=tags,
            inputs=inputs,
            ignore=ignore,
            copy=copy,
            key=idempotency_key,
            progress=progress,
            run_id=active.own_run_id(self),
        )

    def _register_files(
        self, model: Ref, files: Any, *, note: str | None, fields: Mapping[str, Any] | None, **facts: Any
    ) -> ModelVersion:
        """Check, store and commit a version; *facts* are those of `_prepared`."""
        files = hidden(files)
        name = model_name(model)
        texts = {"note": None if note is None else names.check_text(note, "note")}
        own = normalise_fields(fields)
        version, asked = self._prepared(name, files, fields=own, **facts)
        return self._register(version, texts, own, asked=asked)

    def _uses_of_run(self, run_id: str) -> list[str]:
        """Return the URIs that processes of a run have resolved: those in the inbox, and those taken from it."""
        with self._core.view() as view:
            found = view.used_by_run(run_id)
        found += [use.uri for use in inbox(self._core) if use.run_id == run_id]
        return list(dict.fromkeys(found))

    def _prepared(
        self,
        name: str,
        files: Any,
        *,
        metrics: Mapping[str, Any] | None,
        params: Mapping[str, Any] | None,
        tags: Iterable[str],
        inputs: Iterable[str],
        ignore: Iterable[str] = (),
        copy: bool = True,
        key: str | None = None,
        fields: Mapping[str, Value | None] = Frozen(),
        progress: bool | None = None,
        run_id: str | None = None,
        duration: float | None = None,
    ) -> tuple[ev.VersionRegistered, Mapping[str, Any] | None]:
        """Check everything, store the bytes; return the event but for its number, and what was asked (`_register`)."""
        from modelhub_sdk.blobs import progress as bars
        from modelhub_sdk.blobs import sources

        files = hidden(files)
        switch(copy, "copy")
        common = self._common(
            metrics=normalise(metrics, "metrics"), params=normalise(params, "params"), inputs=inputs
        )
        good_tags = tuple(names.check_tag(tag) for tag in listed(tags, "tags"))
        if key is not None:
            key = checked_key(key)
        blobs = self._core.artifacts()
        self._writable()
        origins = OwnSources(self._core)
        found = sources.collect(
            files if copy else {},
            ignore=ignore,
            forbidden=self._own(),
            storage_options=self._core.options_of,
            own=origins,
        )
        named = {} if copy else shielded(lambda: self._named(revealed(files), ignore), ModelHubError)
        if not found and not named:
            raise InvalidDocument("There is no file to register.", hint="A version needs at least one file.")
        with self._core.view() as view:  # what would fail later had better fail before bytes travel
            if not view.has_model(name):
                rules.allowed(view, name)
            if key is None or view.key("model:" + name, key) is None:
                self._core.check_frozen(view)
                rules.has_required_fields(view, fields)
        common |= {"tags": good_tags, "key": key, "run_id": run_id, "duration": duration}
        if named:
            stored, external = self._measured(name, named, progress)
            return self._event(name, stored, external=external, **common), None
        with bars.bar(found.total, f"storing {name}", show=progress) as step:
            stored = blobs.put_all(found, progress=step)
        asked = origins.asked(stored, common["inputs"])
        common["inputs"] = origins.inputs(common["inputs"])
        origins.note(self)
        return self._event(name, stored, **common), None if asked is None else asdict(asked)

    def _named(self, files: Any, ignore: Iterable[str]) -> dict[str, Reference]:
        """Return path -> what is to be kept by reference; see `blobs.elsewhere.named`."""
        from modelhub_sdk.blobs import elsewhere
        from modelhub_sdk.domain import external

        if ignore:
            raise InvalidDocument(
                "ignore= is for folders that are copied.", hint="Name the URLs that are wanted."
            )
        prefixes = tuple(self.settings().get("external") or ())

        def refer(url: str) -> Reference:
            external.check(url, prefixes)
            return self._core.reference(url, None, prefixes)

        return elsewhere.named(files, refer)

    @staticmethod
    def _measured(
        name: str, named: Mapping[str, Reference], progress: bool | None
    ) -> tuple[tuple[File, ...], tuple[ev.External, ...]]:
        """Read what is named once, several at a time; return the files of a version, and where they are."""
        from modelhub_sdk.blobs import elsewhere, parallel
        from modelhub_sdk.blobs import progress as bars

        def one(path: str, step: Any) -> tuple[File, ev.External]:
            digest, size, version = elsewhere.measured(named[path], step)
            return File(path, size, digest), ev.External(path, digest, named[path].url, version)

        with bars.bar(None, f"reading {name}", show=progress) as step:
            found = parallel.each(one, list(named), step)
        return tuple(file for file, _ in found), tuple(where for _, where in found)

    @staticmethod
    def _common(*, metrics: Frozen, params: Frozen, inputs: Iterable[Any]) -> dict[str, Any]:
        """Return the checked facts that versions of one run share."""
        return {
            "metrics": metrics,
            "params": params,
            "inputs": tuple(input_uri(uri) for uri in listed(inputs, "inputs")),
        }

    def _event(self, name: str, stored: Sequence[File], **facts: Any) -> ev.VersionRegistered:
        """Return the event of a version whose bytes are stored, but for its number."""
        document = None
        ordered = manifest.ordered(stored)
        if self._many(ordered):
            document = self._core.artifacts().put_bytes(manifest.encode(ordered))
        return ev.VersionRegistered(
            model=name,
            number=0,
            manifest=manifest.digest(ordered),
            size=sum(file.size for file in ordered),
            files=() if document else ordered,
            document=document,
            **facts,
        )

    @staticmethod
    def _many(files: Sequence[File]) -> bool:
        """Return whether a manifest is too long to stand in an entry."""
        return len(files) > _INLINE_FILES or sum(len(file.path) for file in files) > _INLINE_PATHS

    def _register(
        self,
        version: ev.VersionRegistered,
        texts: Mapping[str, str | None],
        fields: Mapping[str, Value | None],
        wanted: int | None = None,
        arriving: Arrival | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> ModelVersion:
        """Commit a prepared version; *arriving* is what comes from elsewhere with it.

        *asked* is what an idempotency key compares, where names of this registry stand in it.
        """
        content = content_digest(version, texts, fields, asked) if version.key is not None else ""
        number = 0

        def decide(view: View, seal: Sealer) -> list[Event]:
            nonlocal number
            if version.run_id is not None:  # in all attempts at a run, the same files are the same version
                before = view.made_in_run(version.model, version.run_id, version.manifest)
                if before is not None:
                    number = before
                    return []
            if arriving is not None and (here := arriving.known(self._core, view)) is not None:
                number = here
                return []
            events, number = rules.register(view, seal, version, texts, fields, wanted, content)
            if self._core.project and events and isinstance(events[0], ev.ModelCreated):
                events[0] = evolve(events[0], projects=(self._core.project,))
            return events if arriving is None else arriving.complete(events, seal)

        entry = self._commit("model:" + version.model, decide)
        if entry is not None and not version.document and arriving is None:
            (born,) = (event for event in entry.events if isinstance(event, ev.VersionRegistered))
            return fresh(entry, born)
        if arriving is not None:
            return self._here(version.model, number)
        return self._written(version.model, number)

    def edit_version(
        self,
        ref: Ref,
        *,
        note: str | None = None,
        description: str | None = None,
        fields: Mapping[str, Any] | None = None,
        tags: Iterable[str] | None = None,
        add_tags: Iterable[str] = (),
        remove_tags: Iterable[str] = (),
        if_seq: int | None = None,
    ) -> ModelVersion:
        """Change a version's texts, fields or tags, and return it; rules as for `edit_model`.

        Raises:
            NotFound: there is no such version.
            Conflict: it changed since *if_seq*.
        """
        changes = changes_of(
            note=note,
            description=description,
            fields=fields,
            tags=tags,
            add_tags=add_tags,
            remove_tags=remove_tags,
        )
        return self._on_version(
            ref, lambda view, seal, m, n: rules.edit_version(view, seal, m, n, changes, if_seq)
        )

    def comment(self, ref: Ref, text: str) -> ModelVersion:
        """Say something about a version, and return it.

        Raises:
            NotFound: there is no such version.
            InvalidDocument: the text is empty.
        """
        said = names.check_text(text, "comment")
        if not said.strip():
            raise InvalidDocument("The comment is empty.")

        def decide(view: View, seal: Sealer, model: str, number: int) -> list[Event]:
            rules.version_exists(view, model, number)
            return [ev.VersionCommented(model=model, number=number, text=seal(said))]

        return self._on_version(ref, decide)

    def add_evaluation(
        self,
        ref: Ref,
        metrics: Mapping[str, Any],
        *,
        data: str | None = None,
        files: Any = None,
        note: str = "",
    ) -> ModelVersion:
        """Add metrics that were measured after the registration, dated, by their author; nothing is overwritten.

        *data* is the URI of what it was measured on; *files* as for `register`. Returns the version.

        Raises:
            NotFound: there is no such version.
            InvalidDocument: there are no metrics, or some that cannot be stored.
        """
        from modelhub_sdk.blobs import sources

        files = hidden(files)
        good = normalise(metrics, "metrics")
        if not good:
            raise InvalidDocument("An evaluation needs at least one metric.")
        on = None if data is None else input_uri(data)
        said = names.check_text(note, "note") if note else None
        stored: tuple[File, ...] = ()
        self._writable()
        self._there(ref)
        if files is not None:
            found = sources.collect(
                files,
                forbidden=self._own(),
                storage_options=self._core.options_of,
                own=OwnSources(self._core),
            )
            stored = tuple(self._core.artifacts().put_all(found))

        def decide(view: View, seal: Sealer, model: str, number: int) -> list[Event]:
            rules.version_exists(view, model, number)
            note_seal = seal.maybe(said)
            return [
                ev.EvaluationAdded(
                    model=model, number=number, metrics=good, data=on, files=stored, note=note_seal
                )
            ]

        return self._on_version(ref, decide)

    def attach(self, ref: Ref, name: str, content: Any = None) -> ModelVersion:
        """Put a file beside a version, not into its manifest, and return the version.

        Args:
            ref: the version.
            name: what it is called; a path when *content* is left out.
            content: a path, bytes, or a figure with ``savefig`` (matplotlib) or ``save`` (altair, PIL).

        Raises:
            NotFound: there is no such version or file.
            InvalidName: *name* is no file name, or *content* is of another kind.
        """
        from modelhub_sdk.blobs import sources

        if content is None:
            if not isinstance(name, (str, os.PathLike)):
                raise InvalidName(f"{shown(name)} is no path.", hint='reg.attach("churn/v1", "roc.png")')
            name, content = os.path.basename(os.fsdecode(name)), os.fsdecode(name)
        content = hidden(content)
        good = names.check_path(name, "attachment")
        self._writable()
        self._there(ref)
        with tempfile.TemporaryDirectory() as folder:
            files = hidden({good: rendered(content.reveal(), good, Path(folder))})
            content_files = sources.collect(files, forbidden=self._own(), own=OwnSources(self._core))
            if len(content_files) != 1:
                raise InvalidName(f"{shown(name)} is no single file.", hint="Attach the files one by one.")
            (source,) = content_files
            stored = self._core.artifacts().put(source)

        def decide(view: View, seal: Sealer, model: str, number: int) -> list[Event]:
            rules.version_exists(view, model, number)
            return [
                ev.VersionAttached(
                    model=model, number=number, name=good, size=stored.size, digest=stored.digest
                )
            ]

        return self._on_version(ref, decide)

    # --- approval ------------------------------------------------------------------------------

    def approve(self, ref: Ref, reason: str = "") -> ModelVersion:
        """Approve a version, from any status, and return it.

        Raises:
            NotAllowed: *ref* names a moving target (decide on what you saw), or the version is archived.
            Purged: its files, or some of them, were given up.
        """
        return self._decide("approve", ref, reason)

    def reject(self, ref: Ref, reason: str) -> ModelVersion:
        """Reject a version, from any status, with a reason, and return it.

        Raises:
            InvalidDocument: there is no reason.
            NotAllowed: *ref* names a moving target.
        """
        return self._decide("reject", ref, reason)

    def reopen(self, ref: Ref, reason: str = "") -> ModelVersion:
        """Make a version pending again, and return it.

        Raises:
            NotAllowed: *ref* names a moving target.
        """
        return self._decide("reopen", ref, reason)

    def _decide(self, verb: str, ref: Ref, reason: str) -> ModelVersion:
        said = reason_of(reason, required=False)
        moved: list[int | None] = []

        def decide(view: View, seal: Sealer, model: str, number: int) -> list[Event]:
            moved[:] = [view.latest(model)]
            return rules.decide(view, seal, verb, model, number, said, self._core.actor)

        found = self._on_version(ref, decide, fixed=verb)
        with self._core.view(probe=False) as view:
            latest = view.latest(found.model)
        if moved and latest != moved[0]:
            log.info(
                "latest of %s is now %s (was %s)",
                found.model,
                f"v{latest}" if latest else "none",
                f"v{moved[0]}" if moved[0] else "none",
            )
        return found

    @overload
    def set_alias(
        self, model: Dataset | DatasetVersion, alias: str, target: Any, *, reason: str = ""
    ) -> Dataset: ...
    @overload
    def set_alias(
        self, model: Model | ModelVersion | Alias | Resolved, alias: str, target: Any, *, reason: str = ""
    ) -> Alias: ...
    @overload
    def set_alias(self, model: str, alias: str, target: Any, *, reason: str = "") -> Any: ...
    def set_alias(self, model: Any, alias: str, target: Any, *, reason: str = "") -> Alias | Dataset:
        """Point an alias at a version (``3``, ``"v3"``, a value), or at several by weight, and return it.

        Weights are whole percentages: ``{"v5": 90, "v6": 10}``. Of a dataset (``"dataset://clicks/"``) the
        alias points at one version by its name, and the dataset is returned.

        Raises:
            NotFound: there is no such model, dataset or version.
            NotAllowed: a target is rejected or archived, or files of it were purged.
            Conflict: a version of the dataset has the alias' name.
        """
        if _is_dataset(model):
            return datasets.set_alias(self, model, alias, target, reason)
        name, good = model_name(model), names.check_alias(alias)
        said = reason_of(reason, required=False)
        weights = weights_of(name, target)

        def decide(view: View, seal: Sealer) -> list[Event]:
            now = view.alias(name, good)
            return rules.set_alias(view, seal, name, good, weights, now.weights if now else None, said)

        self._commit("model:" + name, decide)
        return self.alias(f"{name}/{good}")

    @overload
    def delete_alias(self, model: Dataset | DatasetVersion, alias: str, *, reason: str = "") -> Dataset: ...
    @overload
    def delete_alias(
        self, model: Model | ModelVersion | Alias | Resolved, alias: str, *, reason: str = ""
    ) -> Model: ...
    @overload
    def delete_alias(self, model: str, alias: str, *, reason: str = "") -> Any: ...
    def delete_alias(self, model: Any, alias: str, *, reason: str = "") -> Model | Dataset:
        """Make an alias of a model or a dataset point at nothing, and return it. The history stays.

        Raises:
            NotFound: there is no such alias.
        """
        if _is_dataset(model):
            return datasets.delete_alias(self, model, alias, reason)
        name, good = model_name(model), names.check_alias(alias)
        said = reason_of(reason, required=False)

        def decide(view: View, seal: Sealer) -> list[Event]:
            if view.alias(name, good) is None:
                raise no_alias(view, name, good)
            return [ev.AliasDeleted(model=name, alias=good, reason=seal.maybe(said))]

        self._commit("model:" + name, decide)
        return self.model(name)

    def rollback(self, ref: Ref, reason: str) -> Alias:
        """Point an alias back at what it pointed at before its last move, and return it.

        Raises:
            NotFound: there is no such alias, or nothing before.
            NotAllowed: what it pointed at before is rejected, archived or purged by now.
        """
        now = self.alias(ref)
        said = reason_of(reason)

        def decide(view: View, seal: Sealer) -> list[Event]:
            history = view.alias_history(now.model, now.name)
            before = next((weights for weights in history[1:] if weights != history[0]), None)
            if before is None:
                raise NotFound(f"{now.uri} has never pointed at anything else.")
            return rules.set_alias(view, seal, now.model, now.name, before, history[0], said)

        self._commit("model:" + now.model, decide)
        return self.alias(now)

    # --- putting away and giving up ------------------------------------------------------------

    def archive(self, ref: Ref, reason: str = "") -> Model | ModelVersion:
        """Put a version away (hidden from `versions` and `latest`), or a model (hidden from `models`). Returns it.

        Raises:
            NotFound: there is no such thing.
        """
        return self._archive(ref, reason, True)

    def restore(self, ref: Ref, reason: str = "") -> Model | ModelVersion:
        """Take a version or a model out of the archive, and return it.

        Raises:
            NotFound: there is no such thing.
        """
        return self._archive(ref, reason, False)

    def _archive(self, ref: Ref, reason: str, wanted: bool) -> Model | ModelVersion:
        said = reason_of(reason, required=False)
        uri = model_or_version(ref)
        pinned = 0

        def decide(view: View, seal: Sealer) -> list[Event]:
            nonlocal pinned
            pinned = number = 0 if uri.selector is None else pin(view, uri)
            if number == 0:
                rules.model_exists(view, uri.name)
                now = view.model(uri.name).archived
            else:
                now = rules.version_exists(view, uri.name, number).archived
            return rules.archive(view, seal, uri.name, number, said, now, wanted)

        self._commit("model:" + uri.name, decide)
        return self._thing(uri.name, pinned)

    def _thing(self, model: str, number: int) -> Model | ModelVersion:
        """Return what was just written to: by now `latest` or an alias may mean another version."""
        return self.version(f"{model}/v{number}") if number else self.model(model)

    def purge(
        self, ref: Ref, reason: str, *, files: Sequence[str] | str | None = None, force: bool = False
    ) -> ModelVersion:
        """Remove the files of a version for good, or only some, and return the version. The record stays.

        Bytes that another version needs are kept for it. Of a version whose manifest is lost, the bytes stay
        until `collect_garbage`.

        Args:
            ref: a model version by its number.
            reason: why; it is kept, and told to whoever asks for the files.
            files: exact paths, or one; None for all.
            force: also when the version is approved, has an alias or was used.

        Raises:
            NotAllowed: the version is approved, has an alias or was used; ``force=True`` overrules.
            NotFound: there is no such version or file; or the manifest of another version is lost, so that it is
                unknown what that needs. Nothing was purged.
            InvalidName: *files* names none.
        """
        said = reason_of(reason)
        switch(force, "force")
        uri = fixed_uri(ref, "purge")
        paths = None if files is None else _exact_paths(uri, files)
        with self._core.view() as view:
            version = found_version(view, uri.name, pin(view, uri))
        files_of = self._manifest_to_purge(version, whole=files is None)
        _check_present(version, paths or (), files_of)
        used = len(self.uses(version))
        from modelhub_sdk import garbage

        garbage.check_manifests(self._core, but=version.uri)

        def decide(view: View, seal: Sealer) -> list[Event]:
            guards = []
            now = view.version(version.model, version.number)
            if now is not None and now.aliases:
                guards.append(f"{', '.join(map(repr, now.aliases))} points at it")
            if used:
                guards.append(f"it was used {used} times" if used > 1 else "it was used once")
            before = view.purge(version.model, version.number)
            if paths is not None and before is not None and all(before.why(path) for path in paths):
                return []
            return rules.purge(view, seal, version.model, version.number, paths, said, guards, force)

        self._commit("model:" + uri.name, decide)
        digests = sorted(
            {file.digest for file in files_of if paths is None or file.path in paths} - self._outside(version)
        )
        garbage.free(self._core, digests)
        self._core.wait_for_deletion(digests)  # a purge that was killed is finished by the next
        return self.version(version)

    def _manifest_to_purge(self, version: ModelVersion, *, whole: bool) -> tuple[File, ...]:
        """Return all files of a version; none when its manifest is lost, and it is given up as a whole."""
        try:
            return self._manifest(version)
        except (NotFound, DigestMismatch, InvalidDocument):
            if not whole:
                raise
            return ()

    def _outside(self, version: ModelVersion) -> set[str]:
        """Return the digests of the files of a version that are kept by reference, and not stored as well."""
        with self._core.view() as view:
            named = {one.digest for one in view.registered(version.model, version.number).external}
        return {digest for digest in named if not self._core.artifacts().has(digest)}

    def _manifest(self, version: ModelVersion) -> tuple[File, ...]:
        """Return all files that a version was registered with, purged ones too."""
        with self._core.view() as view:
            born = view.registered(version.model, version.number)
        if born.document is None:
            return born.files
        return self._core.manifest(born.document, version.uri)

    def collect_garbage(
        self,
        *,
        dry_run: bool = True,
        grace: timedelta = timedelta(days=1),
        progress: bool | None = None,
    ) -> GarbageReport:
        """Delete stored files that nothing needs, and return what was found and done. By default only look.

        With ``dry_run=False`` what nothing needs is condemned, and what was condemned longer ago than
        *grace* is deleted; what a killed collector left is finished, after a minute of watching that it is
        dead. Safe beside others who register at the same time, and in several processes at once.

        Args:
            dry_run: change nothing.
            grace: how long condemned files stay; ``timedelta(0)`` deletes at once.
            progress: show a bar, or not; by default when a person is watching.

        Raises:
            InvalidDocument: *grace* is no duration.
            NotFound: a manifest is missing from the store, so it is unknown what its version needs.
            StoreUnavailable: the store failed; call again.
        """
        from modelhub_sdk import erasure, garbage

        if not switch(dry_run, "dry_run"):
            self._writable()
            erasure.finish_before_collecting(self._core)
        return garbage.collect(self._core, dry_run=dry_run, grace=grace, progress=progress)

    def stats(self) -> Stats:
        """Return how much is stored, for what, and how much of it nothing needs. Lists the whole store.

        It answers also when files or manifests are missing, and counts them.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        from modelhub_sdk import garbage

        return garbage.stats(self._core)

    def redact(
        self, ref: Ref | DatasetRef | RunRecord, what: str, reason: str
    ) -> Model | ModelVersion | Dataset | DatasetVersion | RunRecord:
        """Erase a text from the journal, everywhere and for ever, and return what is left. The chain still verifies.

        Args:
            ref: a model, a dataset, a version of one, or a run (``"run:<id>"``).
            what: ``"note"``, ``"description"``, ``"title"``, ``"owner"``, ``"reasons"``, ``"comments"``,
                ``"evaluations"``, ``"fields.<name>"``; of a run ``"command"``, ``"exception"`` (with its
                traceback, unless another run failed with the very same one); or ``"all"`` of these. And ``"user"``
                or ``"host"``: who did, or used, any of it, and on which machine; `forget_user` erases a person's
                name everywhere.
            reason: why; it is kept.

        Raises:
            NotFound: there is no such thing or text.
            InvalidName: *what* is none of these.
        """
        scope, subjects = self._redactable(ref)
        said = reason_of(reason)
        picker = seal_picker(what)
        touched: set[int] = set()
        last = 0

        def decide(view: View, seal: Sealer) -> list[Event]:
            nonlocal last
            found: dict[tuple[str, int], set[tuple[int, str]]] = {}
            for key in subjects(view):
                last = key[1]
                if what in ("user", "host"):
                    found[key] = view.names_of(*key, what)
                    continue
                for seq, kind, raw in view.texts_of(*key, ()):
                    found.setdefault(key, set()).update((seq, one) for one in picker(kind, raw))
            touched.update(seq for items in found.values() for seq, _ in items)
            gone = view.redacted(touched)
            if not touched:
                raise NotFound(f"{shown(str(ref))} has no {shown(what)} to redact.")
            because = seal.maybe(said)
            return [
                ev.Redacted(model=model, number=number, what=what, items=left, reason=because)
                for (model, number), items in found.items()
                if (left := tuple(sorted((seq, one) for seq, one in items if one not in gone[seq])))
            ]

        self._core.commit(scope, decide)
        self._erase(touched)
        self._drain()
        if scope.startswith("run:"):
            return self.run(scope)
        if scope.startswith("dataset:"):
            name = scope.removeprefix("dataset:")
            return self._dataset_thing(name, last)
        return self._thing(scope.removeprefix("model:"), last)

    def _dataset_thing(self, name: str, number: int) -> Dataset | DatasetVersion:
        if not number:
            return self.dataset(name)
        with self._core.view() as view:
            found = data.version(view, name, number)
        return self._whole_dataset(found)

    def _redactable(self, ref: object) -> tuple[str, Callable[[View], list[tuple[str, int]]]]:
        """Return the scope of what is to be redacted, and a function to its keys in the index."""
        if isinstance(ref, RunRecord) or (isinstance(ref, str) and ref.startswith("run:")):
            run_id = self.run(ref).id
            return "run:" + run_id, lambda view: [
                ("run:" + run_id, attempt) for attempt in range(1, runs.attempts(view, run_id) + 1)
            ]
        if _is_dataset(ref):
            where = dataset_uri(ref)

            def of_dataset(view: View) -> list[tuple[str, int]]:
                dataset_exists(view, where.name)
                return [(data.subject(where.name), 0 if where.version is None else pin_dataset(view, where))]

            return "dataset:" + where.name, of_dataset
        uri = model_or_version(ref)  # type: ignore[arg-type]

        def of_model(view: View) -> list[tuple[str, int]]:
            number = 0 if uri.selector is None else pin(view, uri)
            rules.model_exists(view, uri.name)
            if number:
                rules.version_exists(view, uri.name, number)
            return [(uri.name, number)]

        return "model:" + uri.name, of_model

    def _erase(self, seqs: Iterable[int]) -> None:
        """Erase what the journal says is redacted, until nobody redacted more meanwhile."""
        from modelhub_sdk import erasure

        erasure.finish(self._core, set(seqs))

    def forget_user(self, user: str, reason: str) -> ForgottenUser:
        """Erase a person's name everywhere and for ever, and return what was found. The chain still verifies.

        A random pseudonym (``person-3f9a2c1b``) takes the place of the name wherever a text *is* the person: who
        registered, decided, commented, owned, ran or used something, also in the past. Counts, numbers and rules
        about the same person go on with the pseudonym. Whoever comes back under the name is a new person.
        What was recorded by itself and has the name in it (a host, a command, an exception with its traceback, the
        history of an imported version) is erased as by `redact`. What people typed stays as it is: the
        result says where it mentions the person. In *reason*, the pseudonym is written in place of the name.

        Copies follow when they are copied to again. Backups, bundles, pages that were exported, and the content of
        files are not reached.

        Args:
            user: the name as ``created_by``, an owner or the audit trail shows it, in that case (upper or lower).
                A person of several names (a login, an e-mail address) is forgotten by a call for each;
                ``alike`` of the result lists names that may be theirs.
            reason: why; it is kept.

        Raises:
            NotFound: nobody has that name; the error has the nearest ones.
            InvalidName: it can be no user's name.
            InvalidDocument: there is no reason.
            NotAllowed: the registry is read-only or frozen.
            StoreUnavailable: the store failed. What was begun is finished by whoever writes next.
        """
        from modelhub_sdk import erasure

        said = reason_of(reason)
        return erasure.forget(self._core, user, said or "")

    # --- data ----------------------------------------------------------------------------------

    def create_dataset(
        self,
        name: str,
        *,
        title: str | None = None,
        description: str | None = None,
        owner: str | None = None,
        tags: Iterable[str] = (),
        fields: Mapping[str, Any] | None = None,
        projects: Iterable[str] = (),
    ) -> Dataset:
        """Make a dataset and return it; the arguments are those of `create_model`.

        Raises:
            InvalidName: the name cannot be used.
            Conflict: the dataset exists.
        """
        return datasets.create(
            self,
            name,
            title=title,
            description=description,
            owner=owner,
            tags=tags,
            fields=fields,
            projects=projects,
        )

    def create_dataset_version(
        self,
        ref: DatasetRef,
        files: Any,
        *,
        based_on: DatasetRef | None = None,
        exclude: Iterable[str] = (),
        fields: Mapping[str, Any] | None = None,
        tags: Iterable[str] = (),
        aliases: Iterable[str] = (),
        ignore: Iterable[str] = (),
        idempotency_key: str | None = None,
        progress: bool | None = None,
    ) -> DatasetVersion:
        """Store files as a version of a dataset, and return it. The dataset is made if need be.

        Args:
            ref: ``"dataset://clicks/v7"``: the dataset, and the name of the new version.
            files: as for `register`; None for those of *based_on* alone.
            based_on: the version to start from; files of the same path replace its files.
            exclude: paths, or names in any folder, to leave out of what *based_on* brings.
            fields: values of your own by name.
            tags: free texts.
            aliases: aliases of the dataset that point at the new version from now on.
            ignore: patterns of files to leave out.
            idempotency_key: the same key again, with the same content, gives the same version.
            progress: show a bar, or not; by default when a person is watching.

        Raises:
            Conflict: there is a version or an alias of that name: versions never change.
            NotFound: *based_on*, or a file, does not exist.
            InvalidDocument: it would have no file.
            KeyReused: the key was used for other content.
        """
        files = hidden(files)
        return datasets.create_version(
            self,
            ref,
            files,
            based_on=based_on,
            exclude=exclude,
            fields=fields,
            tags=tags,
            aliases=aliases,
            run_id=active.own_run_id(self),
            ignore=ignore,
            idempotency_key=idempotency_key,
            progress=progress,
        )

    # --- runs ----------------------------------------------------------------------------------

    def start_run(
        self,
        name: str | None = None,
        *,
        id: str | None = None,  # noqa: A002  # what users of job systems call it
        project: str | None = None,
        params: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        outputs: str | os.PathLike[str] | None = "outputs",
        tags: Iterable[str] = (),
        group: str | None = None,
        capture: bool | Iterable[str] = True,
        keep: str = "annotated",
        roots: Iterable[str | os.PathLike[str]] = (),
        commit: str | None = None,
    ) -> Run:
        """Start a run and return it: ``with reg.start_run("train") as run: ...``, or end it by ``run.finish()``.

        Its code, environment, parameters, the files that it reads, what it resolves, its metrics,
        outputs and end are recorded without being asked for. Inside a Valohai execution id, step,
        parameters, inputs and commit are those of the execution.

        Args:
            name: what it is called; by default the name of the script.
            id: the same id again goes on with an interrupted run, and never makes two versions of one thing.
            project: by default that of this handle.
            params: hyperparameters; may be changed in ``run.params`` until the end.
            inputs: name -> URI (``model://``, ``dataset://``, ``datum://``, any URL or path); the run
                does not start unless all of them can be had.
            outputs: the folder whose files become its outputs, with their sidecars; None for none.
            tags: free texts.
            group: what several runs belong to, for example a sweep.
            capture: True, False, or some of ``"code"``, ``"environment"``, ``"reads"``.
            keep: ``"annotated"`` stores the outputs that an annotation names, ``"all"`` every one.
            roots: folders outside of the working folder whose files, when read, are inputs too.
            commit: the commit of the code, where git cannot tell.

        Raises:
            NotFound, NoApprovedVersion …: an input cannot be had; the message names it.
            Conflict: another run that is on writes to the same outputs folder.
            InvalidDocument: parameters that cannot be stored.
        """
        from modelhub_sdk.run.start import start

        inputs = hidden(inputs)

        def begin() -> Run:
            return start(
                self,
                name,
                id=id,
                project=project,
                params=params,
                inputs=revealed(inputs),
                outputs=outputs,
                tags=tags,
                group=group,
                capture=capture,
                keep=keep,
                roots=roots,
                commit=commit,
            )

        return shielded(begin, ModelHubError)

    def run_step(
        self,
        path: str | os.PathLike[str],
        step: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        keep: str = "all",
        id: str | None = None,  # noqa: A002  # as in `start_run`
        tags: Iterable[str] = (),
    ) -> RunRecord:
        """Run a step of a ``valohai.yaml`` here, as a run, and return its record.

        The step's command runs in a process of its own, in the folder of the file, with its inputs, the
        config files and the ``VH_…`` variables where ``valohai-utils`` and scripts for Valohai look for
        them; also under ``/valohai`` for scripts that hard-code it, where the system allows a private
        mount. JSON lines that it prints are metrics, the files that it writes are its outputs.

        Args:
            path: the file, or the folder that it is in.
            step: the name of the step.
            parameters: name -> value, in the place of the defaults.
            inputs: name -> URI or list of them, in the place of the defaults.
            keep: ``"all"`` stores every output, as Valohai does; ``"annotated"`` those that an annotation names.
            id: as for `start_run`.
            tags: free texts.

        Raises:
            NotFound: there is no such file, step, parameter or input; or an input cannot be had: then
                nothing was started.
            InvalidDocument: the file or a parameter is not valid, or ``/valohai`` is needed and cannot be had.
            ChildFailed: the command failed; its record is ``run(error.run_id)``.
            MissingExtra: valohai-yaml is not installed.
        """
        from modelhub_sdk.run.runner import run_step

        return run_step(self, path, step, parameters=parameters, inputs=inputs, keep=keep, id=id, tags=tags)

    def run_pipeline(
        self,
        path: str | os.PathLike[str],
        name: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        keep: str = "all",
    ) -> tuple[RunRecord, ...]:
        """Run the execution nodes of a pipeline of a ``valohai.yaml`` one after another; return their records.

        Edges from outputs and inputs to inputs, and from parameters and metadata to parameters are
        followed. All runs are of one group. *parameters* and *inputs* are ``{"node.name": value}``; the
        rest is as for `run_step`.

        Raises:
            What `run_step` raises; a node that fails ends the pipeline unless it says otherwise.
        """
        from modelhub_sdk.run.runner import run_pipeline

        return run_pipeline(self, path, name, parameters=parameters, inputs=inputs, keep=keep)

    def resolve_inputs(
        self,
        inputs: Mapping[str, Any],
        into: str | os.PathLike[str] = "inputs",
        *,
        params: Mapping[str, Any] | None = None,
    ) -> Mapping[str, PlacedInput]:
        """Bring inputs into a folder, one folder for each, as Valohai lays them out; return where they are.

        Args:
            inputs: name -> URI, or a list of them: ``model://``, ``dataset://``, ``datum://``, any URL that
                fsspec knows (``s3://bucket/*.csv``), or a path. Versions keep their folders.
            into: the folder; each input's folder appears whole or not at all.
            params: values for ``{parameter:x}`` in the URIs.

        Raises:
            NotFound, NotApproved …: an input cannot be had; the message names it, and nothing appeared.
            Conflict: other files are in the way; the message names them.
            InvalidDocument: two files of one input would have one name.
        """
        from modelhub_sdk.run.start import resolve_inputs

        inputs = hidden(inputs)
        return shielded(lambda: resolve_inputs(self, revealed(inputs), into, params or {}), ModelHubError)

    def resolve_step(
        self,
        path: str | os.PathLike[str],
        step: str,
        into: str | os.PathLike[str] = "inputs",
        *,
        parameters: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> Mapping[str, PlacedInput]:
        """Bring the inputs of a step of a ``valohai.yaml`` into a folder, and return where they are.

        Beside *into*, in ``config``, stand ``inputs.json``, ``parameters.json`` and the other files that
        ``valohai-utils`` reads: set ``VH_CONFIG_DIR`` to that folder. The arguments are those of `run_step`.

        Raises:
            What `run_step` raises before it starts, and `resolve_inputs`.
        """
        from modelhub_sdk.run.start import resolve_step

        return resolve_step(self, path, step, into, parameters=parameters, inputs=inputs)

    # --- outputs -------------------------------------------------------------------------------

    def ingest(
        self,
        outputs: str | os.PathLike[str],
        *,
        run: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        inputs: Iterable[str] = (),
        idempotency_key: str | None = None,
        keep: str = "annotated",
        progress: bool | None = None,
    ) -> IngestReport:
        """Read a folder of outputs with its sidecars, and register what they ask for.

        ``valohai.metadata.jsonl`` in the folder and ``<file>.metadata.json`` beside a file are read.
        A bad annotation never loses an output and never stops the others: it is an alert in the report.
        The same outputs again (or the same *run* or *idempotency_key*) change nothing.

        Args:
            outputs: the folder.
            run: the id of the run that wrote it.
            metrics: for every version that is made.
            params: likewise.
            inputs: URIs of what the run read.
            idempotency_key: what makes this ingest the same as another.
            keep: ``"annotated"`` stores the files that an annotation names, ``"all"`` every file.
            progress: show a bar, or not; by default when a person is watching.

        Raises:
            NotFound: there is no such folder.
            InvalidDocument: *metrics* or *params* cannot be stored.
        """
        from modelhub_sdk.ingest import ingest

        return ingest(
            self,
            outputs,
            run=run,
            metrics=metrics,
            params=params,
            inputs=inputs,
            idempotency_key=idempotency_key,
            keep=keep,
            progress=progress,
        )

    # --- the registry --------------------------------------------------------------------------

    def configure(
        self,
        *,
        require: str | None = None,
        external: Sequence[str] | None = None,
        model_names: str | None = None,
        required_fields: Sequence[str] | None = None,
        metrics: Mapping[str, str] | None = None,
    ) -> Mapping[str, Any]:
        """Change the registry's settings and return all of them. What is not passed stays; "" or [] removes.

        Args:
            require: ``"approved"``: nothing else resolves.
            external: URL prefixes under which versions may name bytes outside of the store.
            model_names: a regular expression that new models' names must match.
            required_fields: fields that every new version must have.
            metrics: which way is better: ``{"loss": "min", "auc": "max"}``.

        Raises:
            InvalidDocument: a value that is none of these.
        """
        wanted = settings_of(require, external, model_names, required_fields, metrics)

        def decide(view: View, seal: Sealer) -> list[Event]:
            now = view.settings()
            changed = {name: value for name, value in wanted.items() if now.get(name) != value}
            return [ev.SettingsChanged(settings=Frozen(changed))] if changed else []

        self._commit("registry", decide)
        return self.settings()

    # --- moving --------------------------------------------------------------------------------

    @overload
    def copy_to(
        self,
        other: str | os.PathLike[str] | Registry,
        *,
        ref: None = None,
        artifacts: str | os.PathLike[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        progress: bool | None = None,
    ) -> CopyReport: ...
    @overload
    def copy_to(
        self,
        other: str | os.PathLike[str] | Registry,
        *,
        ref: Ref,
        artifacts: str | os.PathLike[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        progress: bool | None = None,
    ) -> ModelVersion: ...
    def copy_to(
        self,
        other: str | os.PathLike[str] | Registry,
        *,
        ref: Ref | None = None,
        artifacts: str | os.PathLike[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        progress: bool | None = None,
    ) -> CopyReport | ModelVersion:
        """Copy this registry, entry by entry, to a place where there is none yet, or bring an earlier copy up to date.

        The copy has the same entries, digests, ids and seals; files are copied once each, and before what
        names them. Call again after an interruption, or later for what is new; what was redacted or purged since
        leaves the copy then. Nobody may write to a copy
        before it has taken over: then it goes its own way, and is a copy no more.

        With *ref* only that version goes to another registry, and what it is there is returned: pending, with
        the next number, the same digest, metrics, parameters and attachments, and an `origin`; its lineage
        and audit go with it (``other.lineage(version)``). Once it is there, calling again changes nothing.

        Args:
            other: the URL of the place; or an open registry: an earlier copy, with *ref* any registry. An open
                one is reached as its handle reaches it.
            ref: a model version.
            artifacts: where the copy keeps its files, for itself alone; needed for PostgreSQL. Pass the same when
                it is opened.
            storage_options: for the fsspec driver of an object store.
            progress: show a bar, or not; by default when a person is watching.

        Raises:
            Conflict: there is another registry, or one that went its own way; the artifacts of another are
                where its own should go; or what is there already as that version is another one.
            NotAllowed: the other handle is read-only, or the other registry is frozen.
            NotFound, Purged: there is no such version, or some of its files were given up, here or there.
            InvalidURI: *other* names no place.
            InvalidName, InvalidDocument: the other registry's settings do not allow that version.
            DigestMismatch: a stored file is damaged; `verify` says which.
            StoreUnavailable: a store failed; call again.
        """
        from modelhub_sdk import moving

        if not isinstance(other, (str, os.PathLike, Registry)):
            raise InvalidURI(
                f"copy_to takes the URL or path of a place, or an open registry, not {shown(other)}.",
                hint='For example reg.copy_to("s3://bucket/models").',
            )
        artifacts, storage_options = hidden_place(artifacts), HiddenOptions(storage_options)
        if ref is None and isinstance(other, Registry):
            core = other._core
            return shielded(
                lambda: moving.copy_into(self._core, core, artifacts=artifacts, progress=progress),
                ModelHubError,
            )
        target = other = other if isinstance(other, Registry) else hidden_place(other)
        if ref is not None:
            return self._sent(target, version_uri(ref), artifacts, storage_options, progress)
        return shielded(
            lambda: moving.copy(
                self._core, target, artifacts=artifacts, storage_options=storage_options, progress=progress
            ),
            ModelHubError,
        )

    def _sent(
        self,
        other: str | os.PathLike[str] | Registry,
        uri: ModelURI,
        artifacts: str | os.PathLike[str] | None,
        storage_options: Mapping[str, Any] | None,
        progress: bool | None,
    ) -> ModelVersion:
        from modelhub_sdk import bundles

        bundle, use = bundles.pack(self._core, uri)
        items = bundles.sources(self._core.artifacts(), bundle)
        if isinstance(other, Registry):
            arrived = other._arrived(bundles.arrival(bundle), items, progress)
        else:
            with Registry.open(
                other, artifacts=artifacts, storage_options=storage_options, user=self.user
            ) as there:
                arrived = there._arrived(bundles.arrival(bundle), items, progress)
        use()
        return arrived

    def _arrived(self, arriving: Arrival, items: Sequence[Source], progress: bool | None) -> ModelVersion:
        """Register a version that comes from elsewhere, unless it is here; its bytes are *items*."""
        from modelhub_sdk import bundles

        self._writable()
        with self._core.view() as view:
            number = arriving.known(self._core, view)
            if number is None:
                self._core.check_frozen(view)
                if not view.has_model(arriving.name):
                    rules.allowed(view, arriving.name)
                rules.has_required_fields(view, arriving.fields)
        if number is not None:
            here = self._here(arriving.name, number)
            bundles.heal(self._core, arriving, items, progress)
            return here
        files = bundles.store(self._core, arriving, items, progress)
        version = self._event(
            arriving.name, files, key=arriving.key, origin=arriving.origin, **arriving.facts
        )
        return self._register(version, arriving.texts, arriving.fields, arriving=arriving)

    def _here(self, model: str, number: int) -> ModelVersion:
        """Return a version that arrived before.

        Raises:
            Purged: files of it were given up here: it does not come back by the same way.
        """
        with self._core.view() as view:
            purge = view.purge(model, number)
        if purge is not None:
            one = purge.whole or next(iter(purge.files.values()))
            what = "The files" if purge.whole else ", ".join(shown(path) for path in list(purge.files)[:5])
            raise Purged(
                f"model://{model}/v{number} is what that version became here. {what} of it were purged"
                f" {one.told()}",
                hint="If they are wanted here again: register them as a new version.",
            )
        return self._written(model, number)

    def export_bundle(
        self,
        ref: Ref,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        progress: bool | None = None,
    ) -> str:
        """Write one version with its files, lineage and audit as one zip file, and return its absolute path.

        The file appears whole or not at all, and the same version as it is now gives the same bytes. It holds
        texts and names of people; what was redacted before is not in it.

        Args:
            ref: a model version.
            path: of the new file, such as ``churn-v3.zip``.
            overwrite: replace a file that is there.
            progress: show a bar, or not; by default when a person is watching.

        Raises:
            NotFound, Purged: there is no such version, or some of its files were given up.
            Conflict: *path* exists, or is a folder.
            DigestMismatch: a stored file is damaged.
            StoreUnavailable: a file cannot be read, or *path* not be written.
        """
        from modelhub_sdk import bundles

        switch(overwrite, "overwrite")
        bundle, use = bundles.pack(self._core, version_uri(ref))
        written = bundles.write(self._core, bundle, path, overwrite=overwrite, progress=progress)
        use()
        return written

    def import_bundle(self, path: str | os.PathLike[str], *, progress: bool | None = None) -> ModelVersion:
        """Register the version in a bundle that `export_bundle` wrote, and return it as `copy_to` with *ref* does.

        Every byte is checked against the bundle's own record before anything is registered. Importing the
        same version again changes nothing and returns the one that is here; then only the record in the bundle
        is read, and those of its files that are damaged or missing here: they are stored again.

        Raises:
            NotFound: there is no such file.
            Conflict: what is here already as that version is another one: somebody forged one of them.
            Purged: it is here already, and files of it were given up.
            NotAllowed: this registry is read-only or frozen.
            InvalidDocument, InvalidName, DigestMismatch: it is no sound bundle, or the settings of this registry
                do not allow that version. Nothing was registered.
        """
        from modelhub_sdk import bundles

        with bundles.opened(path) as (bundle, items):
            return self._arrived(bundles.arrival(bundle), items, progress)

    def freeze(self, reason: str) -> None:
        """Refuse every change from now on, for everybody; all is read and resolved as before.

        Before a move: freeze, `copy_to`, then use the copy. A copy of a frozen registry is not frozen.

        Raises:
            NotAllowed: it is frozen already; the message says by whom, when and why.
        """
        said = reason_of(reason)
        self._commit("registry", lambda view, seal: [ev.RegistryFrozen(reason=seal.maybe(said))])

    def unfreeze(self, reason: str) -> None:
        """Allow changes again; nothing happens when it is not frozen.

        Raises:
            InvalidDocument: there is no reason.
        """
        said = reason_of(reason)

        def decide(view: View, seal: Sealer) -> list[Event]:
            return [] if view.frozen() is None else [ev.RegistryThawed(reason=seal.maybe(said))]

        self._commit("registry", decide)

    def repair(self, source: Any, *, progress: bool | None = None) -> RepairReport:
        """Store again what is damaged or missing here, taken from where it is still right; return what was done.

        Looks at the bytes of all versions, datasets, datums, attachments, evaluations and runs, and at the documents
        that list them, as `verify` does. Bytes are stored only if they are those of the digest. Can be
        interrupted and repeated. Entries of the journal are not repaired: `verify` reports them.

        Args:
            source: another registry, open or by its URL or folder; a bundle; a cache, as ``hub.cache`` (that of this
                handle) or by its folder; or any folder of files, which are found by their bytes.
            progress: show a bar, or not; by default when a person is watching.

        Raises:
            InvalidURI, InvalidDocument: *source* is nothing that bytes can be taken from.
            NotFound: there is nothing at *source*.
            Conflict: *source* is this very registry.
            NotAllowed: this registry is read-only or frozen.
            StoreUnavailable: a store failed; call again.
        """
        from modelhub_sdk import repair

        source = hidden_place(source)
        return repair.repair(
            self._core, source._core if isinstance(source, RegistryView) else source, progress=progress
        )

    def rebuild_index(self) -> None:
        """Drop the index and fold it again from the journal. Never needed, always safe."""
        self._writable()
        self._core.ledger.rebuild()

    # --- inside --------------------------------------------------------------------------------

    def _own(self) -> tuple[str, ...]:
        """Return the local paths that are the registry's own, and never an artifact."""
        root = None if self._core.blobs is None else self._core.blobs.root
        return self._core.place.own if root is None else (*self._core.place.own, root)

    def _writable(self) -> None:
        self._core.writable()

    def _commit(self, scope: str, decide: Any) -> ev.Entry | None:
        entry = self._core.commit(scope, decide)
        if self._core.erasing > self._core.erased:
            from modelhub_sdk import erasure

            erasure.finish_after_write(self._core)
        self._drain()
        return entry

    def _there(self, ref: Ref) -> None:
        """Raise NotFound unless there is such a version, NotAllowed if nothing may change: before bytes are stored."""
        uri = version_uri(ref)
        with self._core.view() as view:
            self._core.check_frozen(view)
            rules.version_exists(view, uri.name, pin(view, uri))

    def _on_version(self, ref: Ref, decide: Any, fixed: str | None = None) -> ModelVersion:
        """Commit a decision about one version, and return it."""
        uri = version_uri(ref) if fixed is None else fixed_uri(ref, fixed)
        pinned: list[int] = []

        def on_version(view: View, seal: Sealer) -> list[Event]:
            pinned[:] = [pin(view, uri)]
            events: list[Event] = decide(view, seal, uri.name, pinned[0])
            return events

        self._commit("model:" + uri.name, on_version)
        return self._written(uri.name, pinned[0])

    def _written(self, model: str, number: int) -> ModelVersion:
        """Return a version that this handle has just changed; the journal need not be asked again."""
        with self._core.view(probe=False) as view:
            found = found_version(view, model, number)
        return self._whole(found)

    def _drain(self) -> None:
        """Now and then take uses from the inbox into the journal. Never fails a write that succeeded."""
        core = self._core
        if time.monotonic() - core.drained < _DRAIN_EVERY:
            return
        core.drained = time.monotonic()
        try:
            drain(core)
        except ModelHubError as error:
            log.debug("uses wait in the inbox: %s", type(error).__name__)
        except Exception:  # noqa: BLE001  # whatever somebody left there
            log.warning("The inbox of %s could not be emptied.", shown(core.url, 200), exc_info=True)

    def __getattr__(self, name: str) -> Any:
        right = SPELLINGS.get(name)
        if right is not None:
            raise AttributeError(f"There is no {name}() here: {right}", name=name, obj=self)
        raise AttributeError(f"Registry has no attribute {name!r}.", name=name, obj=self)


def _exact_paths(uri: ModelURI, given: Any) -> list[str]:
    """Return the paths of *uri* that are to be purged, as they were *given*, sorted.

    Raises:
        InvalidName: none was given, or something that is no path.
    """
    paths = [given] if isinstance(given, str) else listed(given, "files")
    if not paths:
        raise InvalidName(
            "files= names no file.", hint="Name the paths to purge; leave files= away to purge the version."
        )
    for path in paths:
        try:
            names.check_path(path)
        except InvalidName as error:
            hint = f"purge takes exact paths, no patterns; reg.version({str(uri)!r}).files has them."
            raise InvalidName(error.message, hint=hint) from None
    return sorted(set(paths))


def _check_present(version: ModelVersion, paths: Iterable[str], files: Sequence[File]) -> None:
    """Check that each of *paths* is one of the *files* that *version* was registered with.

    Raises:
        NotFound: the version has no such file.
    """
    present = {file.path for file in files}
    for path in paths:
        if path not in present:
            some = ", ".join(shown(name) for name in sorted(present)[:5]) + (
                ", ..." if len(present) > 5 else ""
            )
            hint = f"purge takes exact paths, no patterns; {version.uri} has {some}."
            raise NotFound(
                f"{version.uri} has no file {shown(path)}.", hint=hint, nearest=nearest(path, present)
            )


def _is_dataset(ref: object) -> bool:
    return isinstance(ref, (Dataset, DatasetVersion)) or (
        isinstance(ref, str) and ref.startswith("dataset://")
    )


SPELLINGS = {
    "push": 'use reg.register("name", files).',
    "pull": 'use reg.resolve("model://name/latest", into="inputs").',
    "snapshot_download": 'use reg.resolve("model://name/latest", into="inputs").',
    "hf_hub_download": 'use reg.resolve("model://name/latest/model.bin").',
    "list": "use reg.models() or reg.versions().",
    "log_model": 'use reg.register("name", "model.pkl", metrics={...}).',
    "register_model": 'use reg.register("name", "model.pkl").',
    "create_version": 'use reg.register("name", files).',
    "create_model_version": 'use reg.register("name", files).',
    "create_registered_model": 'use reg.create_model("name").',
    "upload": 'use reg.register("name", files).',
    "save": 'use reg.register("name", files).',
    "download": 'use reg.resolve("model://name/latest", into="inputs").',
    "download_artifacts": 'use reg.resolve("model://name/latest", into="inputs").',
    "load": 'use reg.resolve("model://name/latest") and load the file yourself.',
    "load_model": 'use reg.resolve("model://name/latest") and load the file yourself.',
    "fetch": 'use reg.resolve("model://name/latest", into="inputs").',
    "get": 'use reg.version("name/v1") or reg.model("name").',
    "get_model": 'use reg.model("name").',
    "get_version": 'use reg.version("name/v1").',
    "get_model_version": 'use reg.version("name/v1").',
    "list_models": "use reg.models().",
    "list_versions": 'use reg.versions("name").',
    "search": 'use reg.versions(where="metrics.auc >= 0.9").',
    "search_models": "use reg.models(where=...).",
    "find": 'use reg.versions(where="metrics.auc >= 0.9").',
    "promote": 'use reg.approve("name/v1", reason) or reg.set_alias("name", "champion", 1).',
    "transition_model_version_stage": 'use reg.approve("name/v1", reason).',
    "delete_model": 'models are never deleted; use reg.archive("name", reason).',
    "delete_version": 'use reg.archive("name/v1", reason), or reg.purge("name/v1", reason) to free its bytes.',
    "delete": 'use reg.archive("name/v1", reason), or reg.purge("name/v1", reason).',
    "set_tag": 'use reg.edit_version("name/v1", add_tags=["tag"]).',
    "log_metric": 'pass metrics={...} to reg.register, or use reg.add_evaluation("name/v1", {...}).',
    "history": 'use reg.audit("name").',
}
"""What people know by another name elsewhere."""
