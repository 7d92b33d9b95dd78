"""Questions about runs, asked of the index as it was at one entry of the journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import evolve, frozen

from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain.entities import Alert, Output
from modelhub_sdk.domain.lineage import RunInput, RunRecord, RunStatus
from modelhub_sdk.domain.query import Order, Query
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.formats import codec
from modelhub_sdk.index import data, fold, search
from modelhub_sdk.index.queries import View, all_values
from modelhub_sdk.index.sql import parts

Document = Callable[[str], bytes]
"""Returns the bytes of a document by its digest."""


@frozen
class Alive:
    """A run that has not finished: what tells whether it lives."""

    id: str
    subject: str
    attempt: int
    started_at: datetime
    host: str | None
    process: str | None


def attempts(view: View, run_id: str) -> int:
    """Return how many times the run was started, 0 when there is no such run."""
    row = view.sql.one("SELECT max(number) FROM @run WHERE model = ? AND seq <= ?", "run:" + run_id, view.at)
    return (row[0] if row else 0) or 0


def run_names(view: View, limit: int = 1000) -> list[str]:
    """Return ids and names of the newest runs."""
    rows = view.sql.all("SELECT id, name FROM @run WHERE seq <= ? ORDER BY seq DESC LIMIT ?", view.at, limit)
    return list(dict.fromkeys(part for row in rows for part in row))


def by_number(view: View, number: int) -> str | None:
    """Return the id of run number *number*, counted from 1."""
    row = view.sql.one(
        "SELECT id FROM @run WHERE number = 1 AND seq <= ? ORDER BY seq, n LIMIT 1 OFFSET ?",
        view.at,
        number - 1,
    )
    return row[0] if row else None


def finished(view: View, run_id: str, attempt: int) -> ev.RunFinished | None:
    """Return how an attempt ended, None while it has not."""
    for _seq, event in _events(view, "run:" + run_id, attempt):
        if isinstance(event, ev.RunFinished):
            return event
    return None


def unfinished(view: View, limit: int = 500) -> list[Alive]:
    """Return the newest runs that have not finished."""
    rows = view.sql.all(
        "SELECT v.model, v.number, v.id, v.seq FROM @run v WHERE v.seq <= ? AND NOT EXISTS (SELECT 1 FROM @finish d"
        " WHERE d.model = v.model AND d.number = v.number AND d.seq <= ?) AND NOT EXISTS (SELECT 1 FROM @run w"
        " WHERE w.model = v.model AND w.number > v.number AND w.seq <= ?) ORDER BY v.seq DESC LIMIT ?",
        view.at,
        view.at,
        view.at,
        limit,
    )
    entries = view.entries(row[3] for row in rows)
    hosts = {seq: codec.loads(entry[2]).get("host") for seq, entry in entries.items()}
    texts = view.texts(hosts.values())
    found = []
    for model, number, id_, seq in rows:
        process = next(
            (e.process for _, e in _events(view, model, number) if isinstance(e, ev.RunStarted)), None
        )
        found.append(Alive(id_, model, number, entries[seq][0], texts.get(hosts[seq] or ""), process))
    return found


def runs(
    view: View, query: Query, order: Order | None, limit: int, offset: int, lost: Mapping[str, int]
) -> tuple[list[RunRecord], int]:
    """Return a page of runs and the number of all that match; *lost* are the subjects that were interrupted.

    Their lists of packages, outputs and inputs that stand in documents are left empty.
    """
    clause = search.where(query, "runs", view.sql.dialect, view.at, tuple(lost))
    clause.add("v.seq <= ?", view.at)
    clause.add(
        "NOT EXISTS (SELECT 1 FROM @run w WHERE w.model = v.model AND w.number > v.number AND w.seq <= ?)",
        view.at,
    )
    rows, total = view.page("SELECT v.id FROM @run v", "@run v", clause, order, "runs", limit, offset)
    return [run(view, row[0], lost=lost) for row in rows], total


def run(
    view: View, run_id: str, *, lost: Mapping[str, int] = Frozen(), document: Document | None = None
) -> RunRecord:
    """Return the run, which exists: all attempts at it as one. Without *document* long lists stay out."""
    subject = "run:" + run_id
    rows = view.sql.all(
        "SELECT number, seq FROM @run WHERE model = ? AND seq <= ? ORDER BY number", subject, view.at
    )
    first, last = rows[0], rows[-1]
    (number,) = view.sql.one("SELECT count(*) FROM @run WHERE number = 1 AND seq <= ?", first[1]) or (0,)
    found = RunRecord(run_id, number, "", "running", datetime.min.replace(tzinfo=UTC))
    changed = first[1]
    for attempt, seq in rows:
        at, actor, via = view.entries([seq])[seq]
        host = codec.loads(via).get("host")
        texts = view.texts([actor, host])
        for event_seq, event in _events(view, subject, attempt):
            changed = max(changed, event_seq)
            if isinstance(event, ev.RunStarted):
                found = _started(found, event, view.texts([event.command]), document)
                if attempt == first[0]:
                    found = evolve(found, started_at=at, user=texts.get(actor))
                found = evolve(found, host=texts.get(host or ""))
            elif isinstance(event, ev.RunFinished):
                ended = view.entries([event_seq])[event_seq][0]
                found = evolve(
                    _finished(found, event, view.texts([event.exception]), document), ended_at=ended
                )
    status: RunStatus = found.status
    if status == "running" and lost.get(subject) == last[0]:
        status = "interrupted"
    outputs, alerts = _outputs(view, subject, document)
    versions, dataset_versions, datums = data.made_by(view, run_id)
    return evolve(
        found,
        status=status,
        tags=all_values(view.facts(subject, last[0]), "tag"),
        outputs=outputs,
        alerts=(*found.alerts, *alerts),
        versions=versions,
        dataset_versions=dataset_versions,
        datums=datums,
        attempts=last[0],
        seq=changed,
    )


def seen_at(view: View, urls: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return URL -> (digest of the bytes, id of the run) as a run has last recorded them."""
    names = {fold.seen_at(url): url for url in urls}
    found = {}
    for part, marks in parts(list(names)):
        rows = view.sql.all(
            f"SELECT model, value FROM @fact WHERE model IN ({marks}) AND number = 0"
            " AND name = 'seen' AND since <= ? AND until > ?",
            *part,
            view.at,
            view.at,
        )
        for name, value in rows:
            digest, _, run_id = value.partition(" ")
            found[names[name]] = digest, run_id
    return found


def series(view: View, run_id: str) -> list[str]:
    """Return the documents with the metrics of a run, one for each attempt that logged any."""
    found = []
    rows = view.sql.all(
        "SELECT number FROM @run WHERE model = ? AND seq <= ? ORDER BY number", "run:" + run_id, view.at
    )
    for (attempt,) in rows:
        end = finished(view, run_id, attempt)
        if end is not None and end.series is not None:
            found.append(end.series)
    return found


def documents(view: View) -> dict[str, str]:
    """Return what runs keep in the blob store beside datums and versions: digest -> the run (the last of several).

    The traceback of an exception that was redacted is not among them.
    """
    gone = {seal for seals in view.all_redacted().values() for seal in seals}
    found: dict[str | None, str] = {}
    for event in view.events(ev.RunStarted.kind, ev.RunFinished.kind):
        if isinstance(event, ev.RunStarted):
            found[event.packages] = event.run_id
        elif isinstance(event, ev.RunFinished):
            trace = None if event.exception in gone else event.traceback
            for digest in (trace, event.series, event.document, *(file.digest for file in event.files)):
                found[digest] = event.run_id
    return {digest: run_id for digest, run_id in found.items() if digest}


def erased_traces(view: View, seq: int) -> set[str]:
    """Return the documents with tracebacks of exceptions that were erased by an entry after *seq*."""
    rows = view.sql.all(
        "SELECT g.seal, e.doc FROM @gone g JOIN @event e ON e.seq = g.seq WHERE g.by > ? AND e.kind = ?",
        seq,
        ev.RunFinished.kind,
    )
    found = set()
    for seal, doc in rows:
        event = codec.loads(doc)
        if event.get("exception") == seal and event.get("traceback"):
            found.add(event["traceback"])
    return found


# --- parts ------------------------------------------------------------------------------------------------


def _events(view: View, subject: str, attempt: int) -> list[tuple[int, ev.Event]]:
    rows = view.sql.all(
        "SELECT seq, doc FROM @event WHERE model = ? AND number = ? AND seq <= ? ORDER BY seq, n",
        subject,
        attempt,
        view.at,
    )
    return [(seq, codec.read_event(doc, subject)) for seq, doc in rows]


def _started(
    found: RunRecord, event: ev.RunStarted, texts: Mapping[str, str], document: Document | None
) -> RunRecord:
    environment = event.environment
    if event.packages is not None and document is not None:
        what = f"the packages of run:{event.run_id}"
        environment = evolve(
            environment, packages=codec.read_document(document(event.packages), what, codec.packages)
        )
    return evolve(
        found,
        name=event.name,
        status="running",
        project=event.project,
        step=event.step,
        pipeline=event.pipeline,
        group=event.group,
        parent=event.parent,
        command=texts.get(event.command or ""),
        code=event.code,
        environment=environment,
        params=Frozen({**found.params, **event.params}),
        ended_at=None,
        exit_status=None,
        exception=None,
        traceback=None,
    )


def _finished(
    found: RunRecord, event: ev.RunFinished, texts: Mapping[str, str], document: Document | None
) -> RunRecord:
    inputs = event.inputs
    if event.document is not None and document is not None:
        what = f"the inputs of run:{event.run_id}"
        inputs = codec.read_document(document(event.document), what, codec.structure_inputs)
    status: Any = event.status
    said, trace = texts.get(event.exception or ""), None
    if event.traceback is not None and said is not None and document is not None:
        trace = document(event.traceback).decode("utf-8", "replace")
    return evolve(
        found,
        status=status,
        duration=(found.duration or 0.0) + event.duration if event.duration is not None else found.duration,
        exit_status=event.exit_status,
        exception=said,
        traceback=trace,
        params=Frozen({**found.params, **event.params}),
        metrics=Frozen({**found.metrics, **event.metrics}),
        inputs=_united(found.inputs, inputs),
        attachments=tuple({file.path: file for file in (*found.attachments, *event.files)}.values()),
        code=evolve(found.code, script=event.script) if event.script else found.code,
        environment=evolve(
            found.environment, unseen=tuple(sorted({*found.environment.unseen, *event.unseen}))
        ),
        alerts=(*found.alerts, *map(_alert, event.alerts)),
    )


def _alert(row: Mapping[str, Any]) -> Alert:
    """Return an alert as it stands in an event; what a later release adds is left out."""
    return Alert(**{name: row[name] for name in ("message", "file", "line", "column", "key") if name in row})


def _united(before: Sequence[RunInput], after: Sequence[RunInput]) -> tuple[RunInput, ...]:
    return tuple({(one.uri, one.name): one for one in (*before, *after)}.values())


def _outputs(
    view: View, subject: str, document: Document | None
) -> tuple[tuple[Output, ...], tuple[Alert, ...]]:
    outputs: dict[str, Output] = {}
    alerts: list[Alert] = []
    for _seq, event in _events(view, subject, 0):
        if not isinstance(event, ev.OutputsIngested):
            continue
        rows: Sequence[Mapping[str, Any]] = event.outputs if event.document is None else ()
        if event.document is not None and document is not None:
            rows = codec.outputs_of(event, document)
        for row in rows:
            outputs[row["path"]] = Output(
                row["path"],
                row["size"],
                row["digest"],
                Frozen(row.get("properties") or {}),
                Frozen(row.get("annotations") or {}),
            )
        alerts += map(_alert, event.alerts)
    return tuple(outputs.values()), tuple(alerts)
