"""The reads: a registry as it is now, or as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve

from modelhub_sdk.arguments import moment_of
from modelhub_sdk.core import Core
from modelhub_sdk.domain import compare as comparing
from modelhub_sdk.domain import names, rules
from modelhub_sdk.domain import query as queries
from modelhub_sdk.domain.compare import Comparison
from modelhub_sdk.domain.entities import (
    Alias,
    AuditRecord,
    Dataset,
    DatasetVersion,
    Datum,
    File,
    Listing,
    Model,
    ModelVersion,
    Resolved,
    Use,
    Verification,
)
from modelhub_sdk.domain.lineage import LineageGraph, LineageRecord, RunRecord
from modelhub_sdk.domain.uri import DatumURI, Named
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.errors import InvalidQuery, InvalidURI, NotFound, nearest, shown
from modelhub_sdk.formats import manifest
from modelhub_sdk.index import data, runs
from modelhub_sdk.index.queries import NOW, View
from modelhub_sdk.references import (
    DatasetRef,
    Ref,
    any_uri,
    dataset_exists,
    dataset_name,
    dataset_version_uri,
    found_version,
    model_name,
    no_alias,
    pin,
    pin_dataset,
    version_uri,
)
from modelhub_sdk.uses import inbox, key_of

if TYPE_CHECKING:
    from modelhub_sdk.lineage import LineageRef

T = TypeVar("T")


class RegistryView:
    """A registry to read, as it is now or as it was at one moment (`at`).

    Everything that is read is a frozen value or a `Listing` of them.
    """

    def __init__(self, core: Core, at: int = NOW) -> None:
        self._core = core
        self._at = at

    def __repr__(self) -> str:
        moment = "" if self._at == NOW else f" at {self._at}"
        return f"<{type(self).__name__} {self._core.url}{moment}>"

    def __reduce__(self) -> Any:
        raise TypeError("An open registry cannot be pickled or copied: open it again where it is needed.")

    @property
    def url(self) -> str:
        """Where the registry is, without any secret."""
        return self._core.url

    @property
    def id(self) -> str:
        """The registry's own id, the same wherever it is copied to."""
        return self._core.registry_id

    # --- models --------------------------------------------------------------------------------

    def model(self, ref: Ref) -> Model:
        """Return a registered model.

        Raises:
            NotFound: there is none; the error names those with a similar name.
        """
        name = model_name(ref)
        with self._core.view(self._at) as view:
            rules.model_exists(view, name)
            return view.model(name)

    def models(
        self,
        *,
        text: str | None = None,
        where: str | None = None,
        project: str | None = None,
        owner: str | None = None,
        order_by: str | None = None,
        limit: int = 100,
    ) -> Listing[Model]:
        """Return registered models, the newest first.

        Args:
            text: a piece of the name, title or description, whatever its case.
            where: a query, for example ``"tags = 'crm' and status = 'approved'"`` (see ``domain.query``).
                Archived models are left out unless it mentions ``archived``.
            project: only models of this project.
            owner: only models of this owner.
            order_by: a field, with ``-`` before it for descending.
            limit: how many at most, 1 to 10,000.

        Raises:
            InvalidQuery: with the place of the fault.
        """
        query = queries.parse(where, queries.MODEL_FIELDS)
        extra = []
        if project is not None:
            extra.append(
                queries.Condition("project", None, "=", names.check_text(project, "project"), kind="set")
            )
        if owner is not None:
            extra.append(queries.Condition("owner", None, "=", names.check_text(owner, "owner")))
        query = queries.Query((*query.conditions, *extra))
        order = queries.parse_order(order_by, queries.MODEL_FIELDS)
        count = queries.check_limit(limit)
        hide = all(c.field != "archived" for c in query.conditions)
        needle = None if text is None else names.check_text(text, "text")

        def page(offset: int, at: int) -> Listing[Model]:
            with self._core.view(at) as view:
                pinned = view.head()[0] if at == NOW else at
                found, total = View(view.sql, pinned).models(
                    query, order, count, offset, text=needle, hide_archived=hide
                )
            return _listing(found, total, offset, lambda after: page(after, pinned))

        return page(0, self._at)

    def iter_models(self, **filters: Any) -> Iterator[Model]:
        """Yield all models that `models` would list, page by page, as of the first page."""
        return _stream(self.models(**filters))

    def alias(self, ref: Ref) -> Alias:
        """Return the alias ``"churn/champion"``.

        Raises:
            NotFound: it points at nothing.
        """
        if isinstance(ref, Alias):
            model, name = ref.model, ref.name
        else:
            uri = version_uri(ref)
            if not isinstance(uri.selector, Named):
                raise InvalidURI(f"{shown(str(ref))} names no alias.", hint='Write "churn/champion".')
            model, name = uri.name, uri.selector.alias
        with self._core.view(self._at) as view:
            found = view.alias(model, name)
            if found is None:
                raise no_alias(view, model, name)
            return found

    # --- versions ------------------------------------------------------------------------------

    def version(self, ref: Ref) -> ModelVersion:
        """Return a model version, whatever its status.

        Raises:
            NotFound: there is no such model, version or alias.
            NoApprovedVersion: `latest` of a model without one.
        """
        uri = version_uri(ref)
        with self._core.view(self._at) as view:
            number = pin(view, uri)
            found = found_version(view, uri.name, number)
        return self._whole(found)

    def latest(self, model: Ref) -> ModelVersion | None:
        """Return the newest approved version that is not archived, None when there is none.

        Raises:
            NotFound: there is no such model.
        """
        name = model_name(model)
        with self._core.view(self._at) as view:
            number = view.latest(name)
            if number is None:
                rules.model_exists(view, name)
                return None
            found = found_version(view, name, number)
        return self._whole(found)

    def versions(
        self,
        model: Ref | None = None,
        *,
        where: str | None = None,
        order_by: str | None = None,
        limit: int = 100,
    ) -> Listing[ModelVersion]:
        """Return versions of one model, or of all, the newest first.

        Args:
            model: whose versions; all models' when omitted.
            where: a query, for example ``"metrics.auc >= 0.9 and status = 'pending'"`` (see ``domain.query``).
                Archived versions are left out unless it mentions ``archived``.
            order_by: a field, with ``-`` before it for descending: ``"-metrics.auc"``. What lacks it comes last.
            limit: how many at most, 1 to 10,000.

        Raises:
            InvalidQuery: with the place of the fault.
            NotFound: there is no such model.
        """
        query = queries.parse(where, queries.VERSION_FIELDS)
        order = queries.parse_order(order_by, queries.VERSION_FIELDS)
        count = queries.check_limit(limit)
        name = None if model is None else model_name(model)
        hide = all(c.field != "archived" for c in query.conditions)

        def page(offset: int, at: int) -> Listing[ModelVersion]:
            with self._core.view(at) as view:
                if name is not None:
                    rules.model_exists(view, name)
                pinned = view.head()[0] if at == NOW else at
                found, total = View(view.sql, pinned).versions(
                    query, order, count, offset, model=name, hide_archived=hide
                )
            whole = [self._whole(version) for version in found]
            return _listing(whole, total, offset, lambda after: page(after, pinned))

        return page(0, self._at)

    def iter_versions(self, model: Ref | None = None, **filters: Any) -> Iterator[ModelVersion]:
        """Yield all versions that `versions` would list, page by page, as of the first page."""
        return _stream(self.versions(model, **filters))

    def identify(self, path: str | os.PathLike[str]) -> Listing[ModelVersion | DatasetVersion]:
        """Return the model and dataset versions that hold the bytes of a file, or exactly the files of a folder.

        Raises:
            NotFound: there is no such file.
        """
        from modelhub_sdk.blobs import disk, sources

        if os.path.isdir(path):
            files = [_file_of(os.fspath(path), source.path) for source in sources.collect(path)]
            digest = manifest.digest(files)
            with self._core.view(self._at) as view:
                rows = view.sql.all(
                    "SELECT model, number FROM @version WHERE manifest = ? AND seq <= ? ORDER BY model, number",
                    digest,
                    self._at,
                )
                keys = [(row[0], row[1]) for row in rows]
                sets = data.with_manifest(view, digest)
        else:
            (source,) = sources.collect(path)
            reader = source.open()
            reader.close()
            digest, _size = disk.hash_file(os.path.realpath(path))
            with self._core.view(self._at) as view:
                keys = view.holding(digest)
                documents = view.documents()
                sets = data.all_holding(view, digest, self._core.document)
            for model, number, document in documents:
                if any(file.digest == digest for file in self._core.manifest(document)):
                    keys.append((model, number))
        with self._core.view(self._at) as view:
            found = view._load(sorted(set(keys)))
        with self._core.view(self._at) as view:
            more = [data.version(view, name, number) for name, number in sets]
        return Listing([*map(self._whole, found), *map(self._whole_dataset, more)])

    def compare(self, *refs: Ref) -> Comparison:
        """Return versions side by side: metrics, parameters, data, code, files, sizes, duration, status.

        ``print`` shows a table, a notebook a page; ``to_dict()`` and ``to_pandas()`` give the values.

        Raises:
            NotFound: one of them does not exist.
            InvalidQuery: none was given.
        """
        found = [self.version(ref) for ref in refs]
        with self._core.view(self._at) as view:
            directions = view.settings().get("metrics") or {}
            ids = {version.run_id for version in found if version.run_id}
            made = {one: runs.run(view, one) for one in ids if runs.attempts(view, one)}
        return comparing.compare(found, directions=directions, runs=made)

    def uses(self, ref: Ref | DatasetRef | Datum) -> Listing[Use]:
        """Return who resolved a version (of a model or a dataset) or a datum, where and when, oldest first.

        From the journal and the inbox together.

        Raises:
            NotFound: there is no such thing.
        """
        with self._core.view(self._at) as view:
            wanted = self._pinned(view, ref)
            found = {use.id: use for use in view.uses(*key_of(view, wanted), wanted)}
        if self._at == NOW:
            for use in inbox(self._core, found):
                if use.uri == wanted and use.id not in found:
                    found[use.id] = use
        return Listing(sorted(found.values(), key=lambda use: (use.at, use.id)))

    def attachment(self, ref: Ref, name: str) -> bytes:
        """Return the bytes of a file that `attach` put beside a version, verified.

        Raises:
            NotFound: the version has no such attachment.
        """
        version = self.version(ref)
        for attachment in version.attachments:
            if attachment.name == name:
                return self._core.artifacts().read(attachment.digest)
        known = [attachment.name for attachment in version.attachments]
        raise NotFound(f"{version.uri} has no attachment {shown(name)}.", nearest=nearest(name, known))

    # --- data ----------------------------------------------------------------------------------

    def dataset(self, ref: DatasetRef) -> Dataset:
        """Return a dataset with the names of its versions.

        Raises:
            NotFound: there is none; the error names those with a similar name.
        """
        name = dataset_name(ref)
        with self._core.view(self._at) as view:
            dataset_exists(view, name)
            return data.dataset(view, name)

    def datasets(
        self,
        *,
        text: str | None = None,
        where: str | None = None,
        order_by: str | None = None,
        limit: int = 100,
    ) -> Listing[Dataset]:
        """Return datasets, the newest first; the arguments are those of `models`.

        Raises:
            InvalidQuery: with the place of the fault.
        """
        query = queries.parse(where, queries.DATASET_FIELDS)
        order = queries.parse_order(order_by, queries.DATASET_FIELDS)
        count = queries.check_limit(limit)
        needle = None if text is None else names.check_text(text, "text")

        def page(offset: int, at: int) -> Listing[Dataset]:
            with self._core.view(at) as view:
                pinned = view.head()[0] if at == NOW else at
                found, total = data.datasets(View(view.sql, pinned), query, order, count, offset, needle)
            return _listing(found, total, offset, lambda after: page(after, pinned))

        return page(0, self._at)

    def dataset_version(self, ref: DatasetRef) -> DatasetVersion:
        """Return a version of a dataset: ``"dataset://clicks/v7"``, an alias, or ``latest``.

        Raises:
            NotFound: there is no such dataset, version or alias.
        """
        uri = dataset_version_uri(ref)
        with self._core.view(self._at) as view:
            found = data.version(view, uri.name, pin_dataset(view, uri))
        return self._whole_dataset(found)

    def datum(self, ref: str | Datum) -> Datum:
        """Return one stored file by its id or alias: ``"datum://<id or alias>"``, or that alone.

        Raises:
            NotFound: there is no such datum.
        """
        from modelhub_sdk.resolver import found_datum

        text = ref.uri if isinstance(ref, Datum) else ref
        uri = DatumURI.parse(text if isinstance(text, str) and "://" in text else f"datum://{text}")
        with self._core.view(self._at) as view:
            return found_datum(view, uri)

    # --- runs and lineage ----------------------------------------------------------------------

    def run(self, ref: str | int | RunRecord) -> RunRecord:
        """Return a run by its id or its number.

        Raises:
            NotFound: there is no such run.
        """
        from modelhub_sdk import lineage

        return lineage.run(self._core, self._at, ref)

    def runs(
        self, *, where: str | None = None, order_by: str | None = None, limit: int = 100
    ) -> Listing[RunRecord]:
        """Return runs, the newest first.

        Args:
            where: a query, for example ``"metrics.auc >= 0.9 and status = 'completed'"`` (see ``domain.query``).
            order_by: a field, with ``-`` before it for descending: ``"-metrics.auc"``.
            limit: how many at most, 1 to 10,000.

        Long lists (packages, many inputs or outputs) are left empty here; `run` has them.

        Raises:
            InvalidQuery: with the place of the fault.
        """
        from modelhub_sdk import lineage

        query = queries.parse(where, queries.RUN_FIELDS)
        order = queries.parse_order(order_by, queries.RUN_FIELDS)
        count = queries.check_limit(limit)

        def page(offset: int, at: int) -> Listing[RunRecord]:
            with self._core.view(at) as view:
                lost = lineage.interrupted(self._core, view)
                pinned = view.head()[0] if at == NOW else at
                found, total = runs.runs(View(view.sql, pinned), query, order, count, offset, lost)
            return _listing(found, total, offset, lambda after: page(after, pinned))

        return page(0, self._at)

    def metrics(self, run: str | int | RunRecord) -> Mapping[str, list[dict[str, Any]]]:
        """Return all metrics that a run logged: by key a list of ``{"step", "at", "value"}``, in order.

        `step` is None where none was given, `at` an aware UTC time. A run that has not ended has none yet.

        Raises:
            NotFound: there is no such run.
        """
        from modelhub_sdk import lineage

        return lineage.metrics(self._core, self._at, run)

    def lineage(self, ref: LineageRef) -> LineageRecord:
        """Return where a thing comes from: its run, code, environment, parameters, inputs; and who used it.

        Args:
            ref: a model version, dataset version, datum or run: a value or a URI. A model alone
                means its latest version.

        Raises:
            NotFound: there is no such thing.
        """
        from modelhub_sdk import lineage

        with self._core.view(self._at) as view:
            node = lineage.node_of(self._core, view, ref)
        uses = tuple(self.uses(node)) if node.startswith(("model://", "dataset://", "datum://")) else ()
        return lineage.record(self._core, self._at, node, uses)

    def upstream(self, ref: LineageRef, depth: int | None = None) -> LineageGraph:
        """Return the graph of what a thing comes from: data, runs, code, other models; *depth* steps at most.

        *ref* is as for `lineage`, or a plain file by its digest (``"sha256:…"``), or ``"code:<commit>"``.

        Raises:
            NotFound: there is no such thing.
        """
        from modelhub_sdk import lineage

        return lineage.walk(self._core, self._at, ref, "up", depth)

    def downstream(self, ref: LineageRef, depth: int | None = None) -> LineageGraph:
        """Return the graph of what came of a thing: runs that read it, what they made, who used that.

        Raises:
            NotFound: there is no such thing.
        """
        from modelhub_sdk import lineage

        return lineage.walk(self._core, self._at, ref, "down", depth)

    # --- audit and time ------------------------------------------------------------------------

    def at(self, moment: str | date | int) -> RegistryView:
        """Return the registry as it was: at an entry number, a time, or the end of a day (UTC).

        Raises:
            InvalidQuery: *moment* is none of these, or lies before the registry was made.
        """
        if isinstance(moment, bool) or not isinstance(moment, (str, date, int)):
            raise InvalidQuery(
                f"{shown(moment)} is not a moment.", hint="Pass a date, a datetime, or an entry number."
            )
        with self._core.view() as view:
            head = view.head()[0]
            seq = moment if isinstance(moment, int) else view.seq_at(moment_of(moment, end_of_day=True))
        if not 1 <= seq <= head:
            raise InvalidQuery(
                f"{shown(moment)} lies outside of this registry's journal (entries 1 to {head})."
            )
        return RegistryView(self._core, min(seq, self._at))

    def audit(
        self,
        ref: Ref | None = None,
        *,
        actor: str | None = None,
        action: str | None = None,
        since: str | date | None = None,
        until: str | date | None = None,
        limit: int = 100,
    ) -> Listing[AuditRecord]:
        """Return what happened, newest first: to a model with its versions, to one version, or to everything.

        Args:
            ref: a model or a version.
            actor: only what this user did.
            action: an event kind such as ``"version.approved"``, or a family such as ``"version"``.
            since: a time, or a day (from its start, UTC).
            until: a time, or a day (to its end, UTC).
            limit: how many at most, 1 to 10,000.

        Raises:
            NotFound: there is no such model or version.
            InvalidQuery: a time or a limit that is none.
        """
        count = queries.check_limit(limit)
        actor = None if actor is None else names.check_text(actor, "actor")
        action = None if action is None else names.check_text(action, "action")
        subject: tuple[str, int] | None = None
        whole = False
        start = None if since is None else moment_of(since, end_of_day=False)
        end = None if until is None else moment_of(until, end_of_day=True)
        with self._core.view(self._at) as view:
            if ref is not None:
                uri = any_uri(ref)
                whole = uri.selector is None
                subject = (uri.name, 0 if whole else pin(view, uri))
                rules.model_exists(view, uri.name) if whole else rules.version_exists(view, *subject)

        def page(offset: int, at: int) -> Listing[AuditRecord]:
            with self._core.view(at) as view:
                pinned = view.head()[0] if at == NOW else at
                found, total = View(view.sql, pinned).audit(
                    subject,
                    whole_model=whole,
                    actor=actor,
                    action=action,
                    since=start,
                    until=end,
                    limit=count,
                    offset=offset,
                )
            return _listing(found, total, offset, lambda after: page(after, pinned))

        return page(0, self._at)

    def verify(self, ref: Ref | None = None, *, progress: bool | None = None) -> Verification:
        """Check the chain, the private texts, the index against a fresh fold, and the stored bytes.

        Damage never raises: each damaged place is a problem that names it, and the rest is checked all the same.
        After a hundred problems the others are counted.

        With *ref*, only the bytes of that version are read. Whoever can rewrite the whole store can
        rebuild the whole chain: compare `Verification.head` with a copy kept elsewhere. *progress* shows a bar,
        or not; by default when a person is watching.

        Raises:
            NotFound: there is no such version.
            StoreUnavailable: the store does not answer.
        """
        from modelhub_sdk.verification import verify

        key = None
        if ref is not None:
            uri = version_uri(ref)
            with self._core.view(self._at) as view:
                key = (uri.name, pin(view, uri))
                rules.version_exists(view, *key)
        return verify(self._core, key, progress=progress)

    def settings(self) -> Mapping[str, Any]:
        """Return what `configure` set."""
        with self._core.view(self._at) as view:
            return Frozen(view.settings())

    # --- resolve -------------------------------------------------------------------------------

    def resolve(
        self,
        uri: Ref,
        into: str | os.PathLike[str] | None = None,
        *,
        files: Sequence[str] | str | None = None,
        require: str | None = None,
        stale_ok: Any = None,
        route_key: str | None = None,
        link: str | None = None,
        verify: str | None = None,
        progress: bool | None = None,
        overwrite: bool = False,
    ) -> Resolved:
        """Bring the files of a version onto this disk, verified, and return where they are.

        Args:
            uri: ``model://name/v3``, ``model://name/latest``, an alias, a digest; with a path after
                it, that one file or folder.
            into: the inputs directory: it appears whole or not at all; what another version of the same left
                there goes, what was placed there from elsewhere stays. Without it, a read-only folder in the
                cache, and nothing is copied.
            files: only these: paths, folders, globs; a leading ``!`` excludes. With a slash they begin at
                the top, without one they fit a name in any folder; ``**/`` also stands for no folder.
            require: ``"approved"`` makes any other version an error, also by number.
            stale_ok: a ``timedelta``: offline, a moving name may be answered by what it meant this long ago.
            route_key: which version of a weighted alias: the same key gets the same version.
            link: ``"copy"``, ``"reflink"`` (a copy where the file system has none), ``"hard"`` (likewise, across
                file systems), or ``"auto"``: reflink where possible; default ``$MODELHUB_LINK``, else auto.
            verify: ``"always"`` hashes also what the cache verified before, and what stands in *into*.
            progress: show a bar, or not; by default when a person is watching.
            overwrite: replace the files of *into* that are in the way.

        Returns:
            `uri`, pinned: what to write down with the predictions; `path` of the folder (of the file, where *uri*
            names one), which ``os.fspath`` gives too; `files`, their paths in it; `version`; `as_of`, when the
            registry was asked. A folder in the cache is for now: a bound or `hub.cache.clear` may remove it when
            its files are not open. Where that matters, pass *into*.

        Raises:
            NotFound, NoApprovedVersion, NotApproved, Purged: there is nothing that may be resolved.
            DigestMismatch: the store gave other bytes than were registered; *into* is as it was.
            Offline: a moving name, and the store is out of reach.
            Conflict: *into* holds other files; the message names them.
        """
        from modelhub_sdk import resolver

        return resolver.resolve(
            self._core,
            self._at,
            str(uri.uri) if isinstance(uri, Resolved) else uri,
            into,
            files=files,
            require=require,
            stale_ok=stale_ok,
            route_key=route_key,
            link=link,
            verify=verify,
            progress=progress,
            overwrite=overwrite,
        )

    # --- inside --------------------------------------------------------------------------------

    @staticmethod
    def _pinned(view: View, ref: object) -> str:
        """Return the URI, pinned, of a version of a model or a dataset, or of a datum."""
        if isinstance(ref, Datum) or (isinstance(ref, str) and ref.startswith("datum://")):
            from modelhub_sdk.resolver import found_datum

            return found_datum(view, DatumURI.parse(str(ref))).uri
        if isinstance(ref, DatasetVersion) or (isinstance(ref, str) and ref.startswith("dataset://")):
            data_uri = dataset_version_uri(ref)
            return data.version(view, data_uri.name, pin_dataset(view, data_uri)).uri
        uri = version_uri(ref)  # type: ignore[arg-type]
        number = pin(view, uri)
        rules.version_exists(view, uri.name, number)
        return f"model://{uri.name}/v{number}"

    def _whole_dataset(self, version: DatasetVersion) -> DatasetVersion:
        """Fill in the files of a dataset version whose manifest stands in a document."""
        if version.files:
            return version
        with self._core.view(probe=False) as view:
            document = data.born(view, version.dataset, version.number).document
        if document is None:
            return version
        return evolve(version, files=self._core.manifest(document, version.uri))

    def _whole(self, version: ModelVersion) -> ModelVersion:
        """Fill in the files of a version whose manifest stands in a document."""
        if version.files or version.purged:
            return version
        with self._core.view() as view:
            document = view.registered(version.model, version.number).document
        if document is None:
            return version
        return evolve(version, files=self._core.manifest(document, version.uri))


def _file_of(folder: str, path: str) -> File:
    from modelhub_sdk.blobs import disk

    digest, size = disk.hash_file(os.path.join(folder, path))
    return File(path, size, digest)


def _listing(found: Sequence[T], total: int, offset: int, more: Any) -> Listing[T]:
    after = offset + len(found)
    return Listing(found, total, (lambda: more(after)) if found and after < total else None)


def _stream(page: Listing[T]) -> Iterator[T]:
    while page:
        yield from page
        page = page.next()
