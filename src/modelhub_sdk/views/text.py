"""Values -> plain text for a terminal.

Whatever users typed passes through `clean`: no control character, no bidirectional trick and no
invisible letter reaches the terminal as itself.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from modelhub_sdk.domain.compare import ABSENT, Comparison, Row
from modelhub_sdk.domain.entities import (
    Alias,
    AuditRecord,
    CopyReport,
    File,
    GarbageReport,
    IngestReport,
    Listing,
    Model,
    ModelVersion,
    Origin,
    RepairItem,
    RepairReport,
    Stats,
    Use,
    Verification,
)
from modelhub_sdk.domain.lineage import Code, Environment, LineageRecord, RunInput, RunRecord
from modelhub_sdk.domain.values import Opaque

__all__ = [
    "cell",
    "clean",
    "code_of",
    "count",
    "duration",
    "environment_of",
    "number",
    "render",
    "repair_line",
    "row_cells",
    "size",
    "table",
    "when",
    "width",
]


# --- One value ------------------------------------------------------------------------------------


def clean(text: str, *, lines: bool = False) -> str:
    r"""Return *text* with every character that is not plainly visible written as an escape, like ``\x1b``.

    With *lines*, newlines and tabs stay.
    """
    text = str.__str__(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (lines and c in "\n\t") else _escape(c) for c in text)


_USUAL_BLANKS = "\u00a0\u202f\u2009\u3000"
_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escape(character: str) -> str:
    if character in _USUAL_BLANKS:  # visible as what they are: blanks
        return " "
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def number(value: float, *, exact: bool = False) -> str:
    """Return a number for reading: six significant digits, or all with *exact*."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        try:
            return str(value)
        except ValueError:  # Python can be told to print fewer digits
            return hex(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if exact:
        return repr(value)
    short = f"{value:.6g}"
    return repr(value) if len(repr(value)) <= len(short) else short


def size(count: int) -> str:
    """Return a number of bytes for reading: ``1.2 MB`` (decimal units)."""
    if count < 1000:
        return f"{count} B"
    amount = float(count)
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        amount /= 1000
        if amount < 999.5 or unit == "PB":
            break
    return f"{amount:.0f} {unit}" if amount >= 99.5 else f"{amount:.1f} {unit}"


def duration(seconds: float) -> str:
    """Return a number of seconds for reading: ``3 min 20 s``."""
    if not math.isfinite(seconds) or seconds < 0:
        return f"{number(seconds)} s"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, secs = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (secs, "s")]
    while not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{amount} {unit}" for amount, unit in parts[:2] if amount)


def when(moment: datetime | None) -> str:
    """Return a time for reading, in UTC: ``2026-03-01 12:00``; "" for None."""
    if moment is None:
        return ""
    return f"{moment.astimezone(UTC) if moment.tzinfo else moment:%Y-%m-%d %H:%M}"


def count(number_of: int, noun: str, plural: str = "") -> str:
    """Return ``1 file``, ``3 files``."""
    return f"{number_of:,} {noun if number_of == 1 else plural or noun + 's'}"


def cell(value: Any, *, exact: bool = False, limit: int = 60) -> str:
    """Return any value as one line of clean text, cut to *limit* characters."""
    if value is None:
        return "none"
    if value is ABSENT:
        return "–"
    if isinstance(value, (int, float)):
        shown = number(value, exact=exact)
    elif isinstance(value, datetime):
        shown = when(value)
    elif isinstance(value, File):
        shown = f"{size(value.size)} {short_digest(value.digest)}"
    elif isinstance(value, str):
        shown = clean(value) if value else "''"
    elif isinstance(value, Opaque):
        shown = clean(value.text)
    elif isinstance(value, Mapping):
        shown = "{" + ", ".join(
            f"{clean(str(k))}: {cell(v, exact=exact)}" for k, v in list(value.items())[:20]
        )
        shown += ", …}" if len(value) > 20 else "}"
    elif isinstance(value, (tuple, list)):
        shown = ", ".join(cell(item, exact=exact) for item in value[:20]) + (", …" if len(value) > 20 else "")
    else:
        shown = clean(str(value))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def short_digest(digest: str) -> str:
    """Return the first twelve digits of a digest."""
    return clean(digest.removeprefix("sha256:")[:12])


def row_cells(row: Row, *, limit: int = 60) -> list[str]:
    """Return the cells of a comparison's row as text: with all digits where fewer would hide a difference."""
    if row.name in ("size", "duration") and all(
        c is ABSENT or isinstance(c, (int, float)) for c in row.cells
    ):
        show = size if row.name == "size" else duration
        cells = [cell(c) if c is ABSENT else show(c) for c in row.cells]  # type: ignore[arg-type]
    elif row.name == "digest":
        cells = [short_digest(str(c)) for c in row.cells]
    else:
        cells = [cell(c, limit=limit) for c in row.cells]
    if row.changed and len(set(cells)) == 1 and row.name == "size":
        cells = [f"{c:,} B" for c in row.cells]
    elif row.changed and len(set(cells)) == 1:
        cells = [cell(c, exact=True, limit=max(limit, 120)) for c in row.cells]
    return cells


# --- Tables ---------------------------------------------------------------------------------------


def width(text: str) -> int:
    """Return how many columns of a terminal *text* takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def table(header: Sequence[str], body: Iterable[Sequence[str]], *, right: Iterable[int] = ()) -> str:
    """Return lines of aligned columns under a header; *right* are the columns that align to the right.

    The cells are taken as they are: pass user text through `clean` or `cell` first.
    """
    lines = [list(header), *([str(c) for c in line] for line in body)]
    widths = [max(width(line[i]) for line in lines) for i in range(len(header))]
    flush = set(right)

    def line_of(cells: Sequence[str]) -> str:
        padded = [
            " " * (widths[i] - width(c)) + c if i in flush else c + " " * (widths[i] - width(c))
            for i, c in enumerate(cells)
        ]
        return "  ".join(padded).rstrip()

    rule = "  ".join("─" * w for w in widths)
    return "\n".join([line_of(lines[0]), rule, *map(line_of, lines[1:])])


def _origin(origin: Origin) -> str:
    return f"{clean(origin.uri)} of registry {clean(origin.registry)}"


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    kept = [(name, text) for name, text in pairs if text]
    wide = max((width(name) for name, _ in kept), default=0)
    return "\n".join(f"  {name}{' ' * (wide - width(name))}  {text}" for name, text in kept)


def _mapping(mapping: Mapping[str, Any]) -> str:
    return _pairs((clean(name)[:40], cell(value)) for name, value in mapping.items())


# --- Whole values ---------------------------------------------------------------------------------


def render(value: Any) -> str:
    """Return *value* as text for a terminal, without a newline at its end."""
    for kind, show in _RENDERERS:
        if isinstance(value, kind):
            return show(value)  # type: ignore[no-any-return]
    return clean(str(value), lines=True)


def _who(actor: str | None) -> str:
    return clean(actor) if actor is not None else "(redacted)"


def _comparison(comparison: Comparison) -> str:
    labels = [clean(label) for label in comparison.labels]
    two = len(labels) == 2
    header = ["", *labels, *(["change"] if two else [])]
    status = next(row for row in comparison.facts if row.name == "status")
    lines: list[list[str]] = [["", *row_cells(status), *([""] if two else [])]]
    marked = False
    for section, rows in comparison.sections.items():
        lines += [[""] * len(header), [section, *[""] * (len(header) - 1)]]
        hidden = 0
        for row in rows:
            if row is status:
                continue
            if section == "files" and len(rows) > 20 and not row.changed:
                hidden += 1
                continue
            cells = row_cells(row, limit=28 if two else 40)
            best = row.best
            marked = marked or bool(best)
            cells = [f"{shown} *" if place in best else shown for place, shown in enumerate(cells)]
            lines.append(["  " + clean(row.name)[:40], *cells, *([_change(section, row)] if two else [])])
        if hidden:
            same = [f"  {hidden:,} more", *["same"] * len(labels), *([""] if two else [])]
            lines.append(same)
    result = table(header, lines)
    return result + ("\n* best" if marked else "")


def _change(section: str, row: Row) -> str:
    if not row.changed:
        return "same" if section == "files" else ""
    first, second = row.cells
    if first is ABSENT or second is ABSENT:
        return "added" if first is ABSENT else "removed"
    if section == "files":
        return "changed"
    change = row.change(1)
    if change is None or section == "facts":
        return ""
    text = f"{change:+.4g}"
    return text if change else ""


def _version(version: ModelVersion) -> str:
    head = f"{clean(version.uri)}  {version.status}" + ("  archived" if version.archived else "")
    head += "  files removed" if version.purged else ""
    head += "  some files removed" if version.purged_files else ""
    facts = _pairs(
        [
            ("aliases", ", ".join(map(clean, version.aliases))),
            ("tags", ", ".join(map(clean, version.tags))),
            ("created", f"{when(version.created_at)} UTC by {_who(version.created_by)}"),
            (
                "decided",
                f"{when(version.decided_at)} UTC by {_who(version.decided_by)}" if version.decided_at else "",
            ),
            ("reason", cell(version.reason, limit=200) if version.reason else ""),
            ("note", cell(version.note, limit=200) if version.note else ""),
            ("files", f"{count(len(version.files), 'file')}, {size(version.size)}"),
            ("by reference", _external(version)),
            ("removed", ", ".join(clean(path) for path in version.purged_files[:_LISTED])),
            ("run", clean(version.run_id or "")),
            ("origin", _origin(version.origin) if version.origin else ""),
            ("duration", duration(version.duration) if version.duration is not None else ""),
            ("digest", clean(version.digest)),
        ]
    )
    parts = [head, facts]
    for name in ("metrics", "params", "fields"):
        if content := getattr(version, name):
            parts += [name, _mapping(content)]
    return "\n".join(parts)


def _external(version: ModelVersion) -> str:
    urls = [clean(url) for url in version.external.values()]
    more = f" and {len(urls) - _LISTED} more" if len(urls) > _LISTED else ""
    return ", ".join(urls[:_LISTED]) + more


def _model(model: Model) -> str:
    title = f"  {clean(model.title)}" if model.title else ""
    facts = _pairs(
        [
            ("owner", clean(model.owner or "")),
            ("tags", ", ".join(map(clean, model.tags))),
            ("projects", ", ".join(map(clean, model.projects))),
            ("latest", f"v{model.latest}" if model.latest else "none approved"),
            (
                "versions",
                ", ".join(f"{n} {clean(status)}" for status, n in model.counts.items() if n) or "none",
            ),
            ("aliases", ", ".join(f"{clean(name)} → {_weights(to)}" for name, to in model.aliases.items())),
            ("created", f"{when(model.created_at)} UTC by {_who(model.created_by)}"),
            ("modified", f"{when(model.modified_at)} UTC"),
        ]
    )
    parts = [clean(model.uri) + title + ("  archived" if model.archived else ""), facts]
    if model.fields:
        parts += ["fields", _mapping(model.fields)]
    if model.description:
        parts += ["", clean(model.description, lines=True)[:2_000]]
    return "\n".join(parts)


def _weights(weights: Mapping[int, int]) -> str:
    if len(weights) == 1:
        return f"v{next(iter(weights))}"
    return ", ".join(f"v{n} {weight} %" for n, weight in sorted(weights.items()))


def _alias(alias: Alias) -> str:
    reason = f": {clean(alias.reason)}" if alias.reason else ""
    return (
        f"{clean(alias.uri)} → {_weights(alias.weights)}  ({when(alias.at)} UTC by {_who(alias.by)}{reason})"
    )


def _record(record: AuditRecord) -> str:
    return f"{record.at:%Y-%m-%d %H:%M:%S} {_who(record.actor)}: {clean(record.detail)}"


def _verification(found: Verification) -> str:
    checked = f"{count(found.entries, 'entry', 'entries')}, {count(found.blobs, 'file')}"
    lines = "".join(f"\n  - {clean(line)}" for line in (*found.problems, *found.remarks))
    if found.ok:
        return f"Verified: {checked}, no problems.{lines}"
    return f"{count(len(found.problems), 'problem')} in {checked}:{lines}"


def _report(report: IngestReport) -> str:
    made = [f"  {clean(version.uri)}  {version.status}" for version in report.versions]
    made += [f"  {clean(uri)}" for uri in report.dataset_versions]
    made += [f"  {count(len(report.datums), 'datum')}"] if report.datums else []
    outputs = f"{count(len(report.outputs), 'output')}, {size(sum(output.size for output in report.outputs))}"
    head = f"Ingested before: nothing changed ({outputs})." if report.repeated else f"Ingested {outputs}."
    alerts = [f"  ! {clean(str(alert))}" for alert in report.alerts]
    return "\n".join([head, *made, *([count(len(alerts), "alert") + ":", *alerts] if alerts else [])])


def _stats(found: Stats) -> str:
    head = f"{clean(found.artifacts)}: {count(found.blobs, 'file')}, {size(found.size)}"
    counts = [
        count(found.models, "model"), count(found.versions, "version"), count(found.datasets, "dataset"),
        count(found.runs, "run"), count(found.entries, "entry", "entries"),
    ]  # fmt: skip
    lines = [head, "  " + ", ".join(counts)]
    if found.unneeded:
        lines.append(f"  {size(found.unneeded)} that nothing needs: reg.collect_garbage() says more")
    if found.missing:
        lines.append(f"  {count(found.missing, 'needed file')} missing: reg.verify() says which")
    return "\n".join([*lines, *(f"  {clean(uri)}  {size(stored)}" for uri, stored in found.largest)])


def _garbage(report: GarbageReport) -> str:
    lines = [f"{count(report.unneeded, 'stored file')} that nothing needs, {size(report.unneeded_size)}."]
    if not report.dry_run:
        lines.append(
            f"  condemned {report.condemned:,}, deleted {report.deleted:,} ({size(report.deleted_size)}),"
            f" swept {count(report.swept, 'unfinished file')}"
        )
    if report.waiting:
        lines.append(f"  {report.waiting:,} condemned, waiting for their grace to end")
    if report.dry_run:
        lines.append("  Nothing was changed (dry_run=True).")
    return "\n".join(lines)


def _copied(report: CopyReport) -> str:
    what = (
        f"{count(report.entries, 'entry', 'entries')}, {count(report.blobs, 'file')} ({size(report.bytes)})"
    )
    lines = [f"Copied {what} to {clean(report.url)} in {duration(report.seconds)}."]
    lines.append(f"  files: {clean(report.artifacts)}")
    if report.missing:
        lines.append(f"  {count(report.missing, 'needed file')} missing here, and there")
    return "\n".join(lines)


def _repaired(report: RepairReport) -> str:
    head = f"Checked {count(report.checked, 'stored file')}: repaired {len(report.repaired):,}"
    lines = [f"{head} from {clean(report.source)}, {len(report.not_found):,} not found there."]
    for title, items in (("repaired", report.repaired), ("not found", report.not_found)):
        lines += [f"  {title}: {clean(repair_line(item))}" for item in items[:_LISTED]]
        if len(items) > _LISTED:
            lines.append(f"  ... and {len(items) - _LISTED:,} more {title}")
    return "\n".join(lines)


def repair_line(item: RepairItem) -> str:
    """Return what was damaged or missing, in a line: digest, size, what needs it."""
    wide = "" if item.size is None else f" ({size(item.size)})"
    more = f" and {len(item.needed_by) - 3} more" if len(item.needed_by) > 3 else ""
    return f"{item.digest}{wide}, needed by {', '.join(item.needed_by[:3])}{more}"


_LISTED = 20  # inputs, outputs … of a run; its HTML has them all


def code_of(code: Code) -> str:
    """Return what code it was, in a line: commit, branch, whether it was changed, and the script."""
    changed = {True: "uncommitted changes", False: "", None: "perhaps changed" if code.commit else ""}
    parts = [
        code.commit[:8] if code.commit else "",
        f"on {code.branch}" if code.branch else "",
        changed[code.dirty],
        code.entry or "",
    ]
    return clean(" · ".join(part for part in parts if part)) or short_digest(code.script or "")


def environment_of(environment: Environment) -> str:
    """Return what a run ran in, in a line."""
    packages = count(len(environment.packages), "package") if environment.packages else ""
    python = f"Python {environment.python}" if environment.python else ""
    parts = [python, environment.platform or "", environment.image or "", packages]
    return clean(" · ".join(part for part in parts if part))


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    more = [f"  … {len(lines) - _LISTED:,} more"] if len(lines) > _LISTED else []
    return [title, *(f"  {line}" for line in lines[:_LISTED]), *more]


def _input(read: RunInput) -> str:
    name = f"{cell(read.name)}: " if read.name else ""
    changed = "  changed while the run was on" if read.changed else ""
    total = sum(file.size for file in read.files)
    files = f"  {count(len(read.files), 'file')}, {size(total)}" if read.files else ""
    return f"{name}{clean(read.uri)}{files}{changed}"


def _made_of(record: RunRecord | LineageRecord) -> list[str]:
    """The parts that a run and a lineage share."""
    parts = []
    for name in ("metrics", "params"):
        if content := getattr(record, name):
            parts += [name, _mapping(content)]
    parts += _listed("inputs", [_input(read) for read in record.inputs])
    outputs = [
        f"{clean(made.path)}  {size(made.size)}  {short_digest(made.digest)}" for made in record.outputs
    ]
    return parts + _listed("outputs", outputs)


def _run(run: RunRecord) -> str:
    failure = f"exit status {run.exit_status}" if run.exit_status else ""
    facts = _pairs(
        [
            ("by", _who(run.user) + (f" on {clean(run.host)}" if run.host else "")),
            ("started", f"{when(run.started_at)} UTC"),
            ("ended", f"{when(run.ended_at)} UTC" if run.ended_at else ""),
            ("duration", duration(run.duration) if run.duration is not None else ""),
            ("failure", cell(run.exception, limit=300) if run.exception else failure),
            *((name, cell(value, limit=120) if (value := getattr(run, name)) else "") for name in RUN_PLACES),
            ("tags", ", ".join(map(clean, run.tags))),
            ("attempts", str(run.attempts) if run.attempts > 1 else ""),
            ("code", code_of(run.code)),
            ("environment", environment_of(run.environment)),
            ("not seen", ", ".join(map(clean, run.environment.unseen))),
        ]
    )
    parts = [f"run #{run.number} {clean(run.name)}  {run.status}", facts, *_made_of(run)]
    parts += _listed("made", [clean(uri) for uri in (*run.versions, *run.dataset_versions, *run.datums)])
    parts += _listed("alerts", [clean(str(alert)) for alert in run.alerts])
    return "\n".join(parts)


RUN_PLACES = ("project", "step", "pipeline", "group", "parent", "command")
"""Where a run stands, and what was called: the fields that are plain texts."""


def _lineage(lineage: LineageRecord) -> str:
    run = lineage.run
    facts = _pairs(
        [
            (
                "made by",
                f"run #{run.number} {clean(run.name)}  {run.status}" if run else "hand (there is no run)",
            ),
            ("origin", _origin(lineage.origin) if lineage.origin else ""),
            ("code", code_of(lineage.code)),
            ("environment", environment_of(lineage.environment)),
        ]
    )
    parts = [f"lineage of {clean(lineage.subject)}", facts]
    parts += _listed("comes from", [clean(uri) for uri in lineage.parents])
    parts += _listed("datasets", [clean(uri) for uri in lineage.datasets])
    parts += _made_of(lineage)
    decisions = [
        f"{clean(decision.status)} {when(decision.at)} UTC by {_who(decision.by)}"
        + (f": {cell(decision.reason, limit=200)}" if decision.reason else "")
        for decision in lineage.approvals
    ]
    parts += _listed("decisions", decisions)
    uses = [
        f"{when(use.at)} UTC  {_who(use.actor)}{f' on {clean(use.host)}' if use.host else ''}"
        f"  as {clean(use.asked)}"
        for use in lineage.used_by
    ]
    parts += _listed("used by", uses)
    parts += _listed("before it came here", [cell(str(one), limit=200) for one in lineage.history])
    return "\n".join(parts)


def _listing(listing: Listing[Any]) -> str:
    items = list(listing)
    if not items:
        return "Nothing found."
    right: set[int] = set()
    if all(isinstance(item, ModelVersion) for item in items):
        metrics = common_keys(item.metrics for item in items)
        header = ["version", "status", *(clean(m) for m in metrics), "size", "created", "by", "tags"]
        right = set(range(2, 3 + len(metrics)))
        body = [
            [
                clean(f"{v.model}/v{v.number}"),
                v.status + (" (archived)" if v.archived else ""),
                *(cell(v.metrics.get(m, ABSENT), limit=16) for m in metrics),
                size(v.size),
                when(v.created_at),
                _who(v.created_by),
                cell(v.tags, limit=40) if v.tags else "",
            ]
            for v in items
        ]
    elif all(isinstance(item, Model) for item in items):
        header = ["model", "latest", "versions", "owner", "modified", "tags"]
        right = {1, 2}
        body = [
            [
                clean(m.name),
                f"v{m.latest}" if m.latest else "–",
                str(m.last_number),
                clean(m.owner or ""),
                when(m.modified_at),
                cell(m.tags, limit=40) if m.tags else "",
            ]
            for m in items
        ]
    elif all(isinstance(item, RunRecord) for item in items):
        metrics = common_keys(item.metrics for item in items)
        header = ["#", "run", "status", *(clean(m) for m in metrics), "started (UTC)", "duration", "by"]
        right = {0, *range(3, 3 + len(metrics)), 4 + len(metrics)}
        body = [
            [
                str(r.number),
                cell(r.name, limit=40),
                r.status,
                *(cell(r.metrics.get(m, ABSENT), limit=16) for m in metrics),
                when(r.started_at),
                duration(r.duration) if r.duration is not None else "",
                _who(r.user),
            ]
            for r in items
        ]
    elif all(isinstance(item, AuditRecord) for item in items):
        header = ["#", "at (UTC)", "actor", "what"]
        right = {0}
        body = [[str(r.seq), f"{r.at:%Y-%m-%d %H:%M:%S}", _who(r.actor), clean(r.detail)] for r in items]
    elif all(isinstance(item, Use) for item in items):
        header = ["at (UTC)", "who", "where", "asked for", "is"]
        body = [[when(u.at), _who(u.actor), clean(u.host or ""), clean(u.asked), clean(u.uri)] for u in items]
    else:
        return "\n".join(render(item) for item in items)
    more = listing.total - len(items)
    return table(header, body, right=right) + (f"\n… {more:,} more" if more > 0 else "")


def common_keys(mappings: Iterable[Mapping[str, Any]], limit: int = 6) -> list[str]:
    """Return the keys that most of *mappings* have, at most *limit*, in order of first appearance."""
    seen: dict[str, int] = {}
    for mapping in mappings:
        for key in mapping:
            seen[key] = seen.get(key, 0) + 1
    best = sorted(seen, key=lambda key: -seen[key])[:limit]
    return [key for key in seen if key in best]


_RENDERERS: tuple[tuple[type, Any], ...] = (
    (Comparison, _comparison),
    (ModelVersion, _version),
    (Model, _model),
    (Alias, _alias),
    (AuditRecord, _record),
    (Verification, _verification),
    (IngestReport, _report),
    (Stats, _stats),
    (GarbageReport, _garbage),
    (CopyReport, _copied),
    (RepairReport, _repaired),
    (RunRecord, _run),
    (LineageRecord, _lineage),
    (Listing, _listing),
)
