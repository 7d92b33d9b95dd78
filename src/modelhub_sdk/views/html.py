"""Values -> HTML: one self-contained fragment for a notebook, a mail or a page.

No script, no link to anything outside, no image. All text that is not written in this module
passes through `esc`. Colours follow the reader's light or dark theme, and each card sets both its
text and its background, so that it can be read on any page. Without its style it is still a set of
plain headings and tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from modelhub_sdk.domain.compare import ABSENT, Comparison, Row
from modelhub_sdk.domain.entities import (
    Alias,
    AuditRecord,
    Dataset,
    DatasetVersion,
    Datum,
    File,
    IngestReport,
    Listing,
    Model,
    ModelVersion,
    Origin,
    RepairReport,
    Resolved,
    Verification,
)
from modelhub_sdk.domain.lineage import LineageRecord, RunInput, RunRecord
from modelhub_sdk.domain.values import Opaque
from modelhub_sdk.views import tables, text

__all__ = ["Html", "esc", "render", "tag"]

_MANY = 40  # rows before the rest is folded away or only counted
_TRACEBACK = 20_000  # characters of it, the last ones
_LONG = 4_000  # characters of one text


class Html(str):
    """Text that is HTML already. Only `esc`, `tag` and this module's own literals make it."""

    __slots__ = ()


# --- Making HTML: the only place ----------------------------------------------------------------


def esc(value: object, *, lines: bool = False, limit: int = _LONG) -> Html:
    """Return *value*'s text as HTML that shows it letter by letter.

    Control, bidirectional and invisible characters are shown as escapes; with *lines* line breaks
    stay. Text beyond *limit* characters is cut.
    """
    if isinstance(value, Html):
        return value
    plain = str(value)
    if len(plain) > limit:
        plain = plain[: limit - 1] + "…"
    return Html(escape(text.clean(plain, lines=lines), quote=True))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """Return an element; children and attribute values are escaped unless they are `Html`.

    An attribute is left out if None; ``class_`` is written ``class``.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{esc(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Iterable[object], between: str = "") -> Html:
    """Return the *parts*, escaped unless they are `Html`, with *between*, which is HTML, between them."""
    return Html(between.join(esc(part) for part in parts if part is not None))


_NOTHING = Html("")

_STYLE = """
.mh{--bg:#fff;--soft:#f6f7f9;--line:#e4e7ec;--ink:#1c2430;--dim:#667085;--link:#3355c8;
--good:#12733f;--good-bg:#e3f5ea;--bad:#b3261e;--bad-bg:#fdecea;--wait:#8a5a00;--wait-bg:#fdf3d8;
--note:#3b4a68;--note-bg:#e9edf7}
@media(prefers-color-scheme:dark){.mh{--bg:#161b22;--soft:#1e252e;--line:#303945;--ink:#e6eaf0;
--dim:#97a3b4;
--link:#8fb0ff;--good:#6fd79a;--good-bg:#153524;--bad:#ff9d94;--bad-bg:#431d1b;--wait:#f0c25e;
--wait-bg:#3a2f12;
--note:#b4c3e4;--note-bg:#26314a}}
DARK{--bg:#161b22;--soft:#1e252e;--line:#303945;--ink:#e6eaf0;--dim:#97a3b4;
--link:#8fb0ff;--good:#6fd79a;--good-bg:#153524;--bad:#ff9d94;--bad-bg:#431d1b;--wait:#f0c25e;
--wait-bg:#3a2f12;
--note:#b4c3e4;--note-bg:#26314a}
LIGHT{--bg:#fff;--soft:#f6f7f9;--line:#e4e7ec;--ink:#1c2430;--dim:#667085;--link:#3355c8;
--good:#12733f;--good-bg:#e3f5ea;--bad:#b3261e;--bad-bg:#fdecea;--wait:#8a5a00;--wait-bg:#fdf3d8;
--note:#3b4a68;--note-bg:#e9edf7}
.mh{box-sizing:border-box;width:fit-content;min-width:min(100%,26em);max-width:100%;margin:.5em 0;
padding:1.1em 1.3em 1.2em;overflow-x:auto;
background:var(--bg);color:var(--ink);border:1px solid var(--line);border-radius:12px;
font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;text-align:left}
.mh *{box-sizing:border-box}
.mh header{display:flex;flex-wrap:wrap;align-items:center;gap:.3em .6em;margin:0}
.mh h3{font-size:1.35em;line-height:1.25;font-weight:650;margin:0;letter-spacing:-.01em;color:inherit;
overflow-wrap:anywhere}
.mh h3 small{font-size:1em;font-weight:400;color:var(--dim)}
.mh h4{font-size:.78em;font-weight:600;letter-spacing:.06em;text-transform:uppercase;color:var(--dim);
margin:1.5em 0 .45em}
.mh p{margin:.35em 0 0}
.mh .dim{color:var(--dim)}
.mh .brk{display:inline-block;min-width:16em;overflow-wrap:anywhere}
.mh header+table{margin-top:.9em}
.mh .num{font-variant-numeric:tabular-nums}
.mh code{font:.9em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
background:none;color:inherit;padding:0}
.mh .badge{display:inline-block;padding:.08em .65em;border-radius:99px;font-size:.86em;font-weight:600;
white-space:nowrap;
color:var(--note);background:var(--note-bg)}
.mh .approved,.mh .ok{color:var(--good);background:var(--good-bg)}
.mh .rejected,.mh .bad{color:var(--bad);background:var(--bad-bg)}
.mh .pending{color:var(--wait);background:var(--wait-bg)}
.mh .chip{display:inline-block;padding:0 .55em;border:1px solid var(--line);border-radius:6px;
font-size:.86em;
color:var(--dim);margin:0 .3em .15em 0;max-width:20em;overflow:hidden;text-overflow:ellipsis;
white-space:nowrap;vertical-align:bottom}
.mh .alias{color:var(--link);border-color:currentColor}
.mh .tiles{display:flex;flex-wrap:wrap;gap:.6em;margin-top:1.1em}
.mh .tile{background:var(--soft);border-radius:9px;padding:.55em .9em .6em;min-width:6.5em}
.mh .tile b{display:block;font-size:1.45em;line-height:1.3;font-weight:600;
font-variant-numeric:tabular-nums}
.mh .tile>span{font-size:.86em;color:var(--dim);overflow-wrap:anywhere}
.mh table{border-collapse:collapse;border:0;margin:0;font-size:1em;color:inherit;background:none;width:auto}
.mh tr,.mh tbody tr:nth-child(odd),.mh tbody tr:nth-child(even){background:none}
.mh th,.mh td{padding:.32em 1.5em .32em 0;border:0;text-align:left;vertical-align:top;font-weight:400;
max-width:26em;overflow-wrap:break-word;white-space:normal}
.mh th:last-child,.mh td:last-child{padding-right:0}
.mh thead th{color:var(--dim);font-size:.86em;font-weight:500;vertical-align:bottom;white-space:nowrap}
.mh tbody tr>*{border-top:1px solid var(--line)}
.mh tbody th{color:var(--dim)}
.mh .cols{display:flex;flex-wrap:wrap;gap:0 3.2em}
.mh .right{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.mh .nowrap{white-space:nowrap}
.mh .cmp th,.mh .cmp td{padding-right:2.2em}
.mh .cmp .group>*{padding-top:1.4em;border-top:0;font-size:.78em;font-weight:600;letter-spacing:.06em;
text-transform:uppercase;color:var(--dim)}
.mh .cmp thead th{font-size:1em;font-weight:600;color:var(--ink);padding-bottom:.5em}
.mh .cmp .same td{color:var(--dim)}
.mh .best{font-weight:650}
.mh .best::before{content:"";display:inline-block;width:.5em;height:.5em;border-radius:50%;
background:var(--good);
margin:0 .5em .1em -1em}
.mh .delta{display:inline-block;margin-left:.6em;font-size:.86em;font-weight:400;color:var(--dim)}
.mh .up{color:var(--good)}.mh .down{color:var(--bad)}
.mh blockquote{margin:.9em 0 0;padding:.05em 0 .05em .9em;border-left:3px solid var(--line);color:inherit;
white-space:pre-wrap;overflow-wrap:anywhere;max-width:52em;font-size:1em}
.mh blockquote footer{color:var(--dim);font-size:.9em;white-space:normal;background:none}
.mh pre{overflow-x:auto;font-size:.9em;max-width:72em;background:none;color:inherit}
.mh .prose{white-space:pre-wrap;overflow-wrap:anywhere;max-width:52em;margin-top:1em}
.mh .bar{display:flex;gap:2px;height:8px;width:16em;max-width:100%;border-radius:4px;overflow:hidden;
margin:.8em 0 .5em}
.mh .bar i{display:block;min-width:3px;background:var(--note)}
.mh .bar i.approved{background:#2f9e5d}
.mh .bar i.rejected{background:#d5483f}
.mh .bar i.pending{background:#dfa52a}
.mh .legend span{margin-right:1em;white-space:nowrap}
.mh details{margin-top:.3em}
.mh summary{cursor:pointer;color:var(--link);margin:.4em 0}
.mh ul{margin:.6em 0 0;padding-left:1.2em}
.mh li{margin:.2em 0;overflow-wrap:anywhere}
@media print{.mh{border-color:#999;max-width:none}}
"""

# Notebooks have a theme of their own, whatever the machine's is.
_DARK = (
    '[data-jp-theme-light="false"] .mh',
    "body.vscode-dark .mh",
    'html[theme="dark"] .mh',
    '[data-theme="dark"] .mh',
)
_LIGHT = ('[data-jp-theme-light="true"] .mh', "body.vscode-light .mh", '[data-theme="light"] .mh')
_STYLE = _STYLE.replace("DARK", ",".join(_DARK)).replace("LIGHT", ",".join(_LIGHT)).replace("\n", "")


def _card(*parts: object) -> str:
    return str(Html(f"<style>{_STYLE}</style>") + tag("section", *parts, class_="mh"))


# --- Pieces --------------------------------------------------------------------------------------


def _words(words: str, limit: int = 300) -> Html:
    """User text in a line or cell, in its own direction; a long word may break, a short one never does."""
    long = any(len(word) > 32 for word in words[:limit].split())
    return tag("bdi", esc(words, limit=limit), class_="brk" if long else None)


def _badge(word: str, look: str = "") -> Html:
    return tag("span", word, class_=f"badge {look or word}" if (look or word) in _LOOKS else "badge")


_LOOKS = ("approved", "rejected", "pending", "ok", "bad")


def _chips(words: Iterable[str], look: str = "") -> Html:
    return join(tag("span", tag("bdi", word), class_=f"chip {look}".rstrip(), title=word) for word in words)


def _when(moment: datetime | None) -> Html:
    if moment is None:
        return _NOTHING
    return tag(
        "time", text.when(moment), datetime=moment.isoformat(), title=moment.isoformat(), class_="nowrap"
    )


def _who(actor: str | None) -> Html:
    return tag("bdi", actor) if actor is not None else tag("span", "(redacted)", class_="dim")


def _by(moment: datetime | None, actor: str | None) -> Html:
    return join([_when(moment), " UTC by ", _who(actor)])


def _header(title: object, *beside: object) -> Html:
    return tag("header", tag("h3", title), *beside)


def _value(value: Any) -> Html:
    """A value in a cell: numbers short with all digits in the tooltip, text as it is."""
    if value is ABSENT:
        return tag("span", "–", class_="dim", title="not there")
    if value is None:
        return tag("span", "none", class_="dim")
    if isinstance(value, datetime):
        return _when(value)
    if isinstance(value, (int, float)):
        short = text.number(value)
        full = text.number(value, exact=True)
        return tag(
            "span", short if len(short) <= 40 else short[:39] + "…", title=full if full != short else None
        )
    if isinstance(value, File):
        return tag("span", text.size(value.size), " ", _digest(value.digest), class_="nowrap")
    if isinstance(value, Opaque):
        return tag("code", esc(value.text, limit=200), title=value.type)
    if isinstance(value, str):
        return _words(value) if value else tag("span", "empty text", class_="dim")
    return tag("span", text.cell(value, limit=300))


def _digest(digest: str) -> Html:
    return tag("code", text.short_digest(digest), class_="dim", title=digest)


def _table(
    header: Sequence[object],
    body: Iterable[Sequence[object]],
    *,
    right: Iterable[int] = (),
    class_: str | None = None,
) -> Html:
    flush = set(right)

    def line(cells: Sequence[object], name: str) -> Html:
        return tag("tr", *(tag(name, c, class_="right" if i in flush else None) for i, c in enumerate(cells)))

    head = tag("thead", line(header, "th")) if any(header) else _NOTHING
    return tag("table", head, tag("tbody", *(line(cells, "td") for cells in body)), class_=class_)


def _pairs(pairs: Iterable[tuple[object, object]]) -> Html:
    body = [tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in pairs if value]
    return tag("table", tag("tbody", *body)) if body else _NOTHING


def _folded(lines: Sequence[Any], show: Callable[[Sequence[Any]], Html], noun: str, plural: str = "") -> Html:
    """All lines, those after the first forty behind a click, and beyond two thousand only counted."""
    head, tail, rest = lines[:_MANY], lines[_MANY:2_000], len(lines) - 2_000
    parts = [show(head)]
    if tail:
        more = text.count(len(lines) - _MANY, f"more {noun}", f"more {plural or noun + 's'}")
        parts.append(tag("details", tag("summary", more), show(tail)))
    if rest > 0:
        parts.append(tag("p", f"… and {rest:,} that are not shown", class_="dim"))
    return join(parts)


def _mapping(title: str, mapping: Mapping[str, Any]) -> Html:
    if not mapping:
        return _NOTHING
    pairs = [(_words(name), _value(value)) for name, value in mapping.items()]
    return join([tag("h4", title), _folded(pairs, _pairs, "value")])


def _tiles(metrics: Mapping[str, Any]) -> Html:
    if not metrics:
        return _NOTHING
    return tag(
        "div",
        *(
            tag("div", tag("span", tag("bdi", esc(name, limit=60))), tag("b", _value(value)), class_="tile")
            for name, value in metrics.items()
        ),
        class_="tiles",
    )


def _files(files: Sequence[File], noun: str = "file") -> Html:
    if not files:
        return _NOTHING

    def show(some: Sequence[File]) -> Html:
        return _table(
            (),
            [(_words(file.path), text.size(file.size), _digest(file.digest)) for file in some],
            right=[1],
        )

    return join([tag("h4", text.count(len(files), noun)), _folded(files, show, noun)])


def _quote(words: str | None, *source: object) -> Html:
    if not words:
        return _NOTHING
    footer = tag("footer", *source) if source else _NOTHING
    return tag("blockquote", tag("bdi", esc(words, lines=True)), footer)


def _prose(words: str | None) -> Html:
    return tag("div", esc(words, lines=True), class_="prose", dir="auto") if words else _NOTHING


def _short(version: ModelVersion) -> Html:
    number = tag("span", f"/v{version.number}", class_="dim")
    return tag("span", tag("strong", version.model), number, class_="nowrap", title=version.uri)


def _status(version: ModelVersion) -> Html:
    flags = [_badge(version.status)]
    if version.archived:
        flags.append(_badge("archived"))
    if version.purged:
        flags.append(_badge("files removed", "bad"))
    if version.purged_files:
        flags.append(_badge("some files removed", "bad"))
    return join(flags, " ")


# --- Whole values --------------------------------------------------------------------------------


def render(value: Any) -> str:
    """Return *value* as a self-contained piece of HTML, safe to put into any page."""
    for kind, show in _RENDERERS:
        if isinstance(value, kind):
            return _card(*show(value))
    return _card(tag("div", text.render(value), class_="prose"))


def _version(version: ModelVersion) -> Iterable[Html]:
    yield _header(
        join([version.model, " ", tag("small", f"v{version.number}")]),
        _status(version),
        _chips(version.aliases, "alias"),
    )
    yield tag(
        "p",
        join([tag("code", version.uri), " · registered ", _by(version.created_at, version.created_by)]),
        class_="dim",
    )
    if version.tags:
        yield tag("p", _chips(version.tags))
    if version.decided_at:
        verb = {"approved": "Approved", "rejected": "Rejected"}.get(version.status, "Reopened")
        by = _by(version.decided_at, version.decided_by)
        yield _quote(version.reason, f"{verb} ", by) or tag("p", f"{verb} ", by, class_="dim")
    yield _prose(version.description)
    yield _quote(version.note)
    if len(version.metrics) <= 8:
        yield _tiles(version.metrics)
    else:
        yield _mapping("Metrics", version.metrics)
    sides = [
        _mapping("Parameters", version.params),
        _files(version.files),
        _mapping("Fields", version.fields),
    ]
    yield tag("div", *(tag("div", side) for side in sides if side), class_="cols")
    for evaluation in version.evaluations:
        beside = join(["on ", tag("code", evaluation.data)]) if evaluation.data else _NOTHING
        yield tag("h4", "Evaluation")
        yield tag("p", _by(evaluation.at, evaluation.by), " ", beside, class_="dim")
        yield _tiles(evaluation.metrics)
        yield _quote(evaluation.note)
    if version.attachments:
        yield tag("h4", "Attachments")
        yield _table(
            (),
            [(tag("bdi", a.name), text.size(a.size), _by(a.at, a.by)) for a in version.attachments],
            right=[1],
        )
    if version.comments:
        yield tag("h4", "Comments")
        for comment in version.comments:
            yield _quote(comment.text or "(redacted)", _by(comment.at, comment.by))
    yield tag("h4", "Origin")
    yield _pairs(
        [
            ("inputs", join((tag("code", uri) for uri in version.inputs), "<br>")),
            ("run", tag("code", version.run_id) if version.run_id else ""),
            ("from", _elsewhere(version.origin) if version.origin else ""),
            ("duration", text.duration(version.duration) if version.duration is not None else ""),
            ("size", text.size(version.size)),
            (
                "by reference",
                join((tag("code", url) for url in list(version.external.values())[:_MANY]), "<br>"),
            ),
            ("removed", join((tag("code", path) for path in version.purged_files), "<br>")),
            ("digest", tag("code", version.digest)),
        ]
    )


def _elsewhere(origin: Origin) -> Html:
    return join([tag("code", origin.uri), " of registry ", tag("code", origin.registry)])


def _model(model: Model) -> Iterable[Html]:
    latest = _badge(f"latest v{model.latest}", "ok") if model.latest else _badge("nothing approved yet")
    yield _header(model.title or model.name, latest, _badge("archived") if model.archived else None)
    owner = join([" · owned by ", tag("bdi", model.owner)]) if model.owner else _NOTHING
    projects = (
        join([" · in ", join((tag("bdi", name) for name in model.projects), ", ")])
        if model.projects
        else _NOTHING
    )
    yield tag("p", tag("code", model.uri), owner, projects, class_="dim")
    if model.tags:
        yield tag("p", _chips(model.tags))
    total = sum(model.counts.values())
    order = [status for status in ("approved", "pending", "rejected") if model.counts.get(status)]
    if total:
        yield tag(
            "div",
            *(tag("i", class_=status, style=f"flex:{int(model.counts[status])}") for status in order),
            class_="bar",
            role="presentation",
        )
        yield tag(
            "div",
            tag("span", text.count(total, "version")),
            *(tag("span", f"{model.counts[status]} {status}", class_="dim") for status in order),
            class_="legend",
        )
    else:
        yield tag("p", "No versions yet.", class_="dim")
    yield _prose(model.description)
    if model.aliases:
        yield tag("h4", "Aliases")
        yield _table(
            (), [(_chips([name], "alias"), _weights(weights)) for name, weights in model.aliases.items()]
        )
    yield _mapping("Fields", model.fields)
    yield tag("h4", "History")
    yield _pairs(
        [
            ("created", _by(model.created_at, model.created_by)),
            ("modified", join([_when(model.modified_at), " UTC"])),
        ]
    )


def _dataset(dataset: Dataset) -> Iterable[Html]:
    count = text.count(len(dataset.versions), "version")
    yield _header(
        dataset.title or dataset.name, _badge(f"latest {dataset.latest}") if dataset.latest else None
    )
    owner = join([" · owned by ", tag("bdi", dataset.owner)]) if dataset.owner else _NOTHING
    yield tag("p", tag("code", dataset.uri), f" · {count}", owner, class_="dim")
    if dataset.tags:
        yield tag("p", _chips(dataset.tags))
    yield _prose(dataset.description)
    if dataset.aliases:
        yield tag("h4", "Aliases")
        yield _table((), [(_chips([name], "alias"), tag("bdi", at)) for name, at in dataset.aliases.items()])
    if dataset.versions:
        yield tag("h4", "Versions, newest first")
        newest = dataset.versions[::-1]
        more = f" and {len(newest) - _MANY} more" if len(newest) > _MANY else ""
        yield tag("p", join((tag("code", name) for name in newest[:_MANY]), ", "), more)
    yield _mapping("Fields", dataset.fields)
    yield tag("h4", "History")
    yield _pairs(
        [
            ("created", _by(dataset.created_at, dataset.created_by)),
            ("modified", join([_when(dataset.modified_at), " UTC"])),
        ]
    )


def _dataset_version(version: DatasetVersion) -> Iterable[Html]:
    yield _header(
        join([version.dataset, " ", tag("small", version.version)]), _chips(version.aliases, "alias")
    )
    yield tag(
        "p", tag("code", version.uri), " · stored ", _by(version.created_at, version.created_by), class_="dim"
    )
    if version.tags:
        yield tag("p", _chips(version.tags))
    sides = [_files(version.files), _mapping("Fields", version.fields)]
    yield tag("div", *(tag("div", side) for side in sides if side), class_="cols")
    yield tag("h4", "Origin")
    yield _pairs(
        [
            ("based on", tag("code", version.based_on) if version.based_on else ""),
            ("run", tag("code", version.run_id) if version.run_id else ""),
            ("size", text.size(version.size)),
            ("digest", tag("code", version.digest)),
        ]
    )


def _datum(datum: Datum) -> Iterable[Html]:
    yield _header(datum.name, _chips(datum.aliases, "alias"))
    yield tag(
        "p", tag("code", datum.uri), " · stored ", _by(datum.created_at, datum.created_by), class_="dim"
    )
    if datum.tags:
        yield tag("p", _chips(datum.tags))
    yield _mapping("Properties", datum.properties)
    yield tag("h4", "Origin")
    yield _pairs(
        [
            ("run", tag("code", datum.run_id) if datum.run_id else ""),
            ("size", text.size(datum.size)),
            ("digest", tag("code", datum.digest)),
        ]
    )


def _weights(weights: Mapping[int, int]) -> Html:
    if len(weights) == 1:
        return esc(f"v{next(iter(weights))}")
    return join((f"v{number} {weight} %" for number, weight in sorted(weights.items())), " · ")


def _alias(alias: Alias) -> Iterable[Html]:
    yield _header(join([alias.model, tag("small", "/"), alias.name]), _badge("alias"))
    yield tag("p", tag("code", alias.uri), " → ", tag("strong", _weights(alias.weights)))
    by = join(["moved ", _by(alias.at, alias.by)])
    yield _quote(alias.reason, by) or tag("p", by, class_="dim")


def _record(record: AuditRecord) -> Iterable[Html]:
    yield _header(tag("bdi", record.detail))
    yield tag("p", tag("code", record.action), " · ", _by(record.at, record.actor), class_="dim")
    yield tag("h4", "Record")
    yield _pairs(
        [
            ("subject", tag("code", record.subject)),
            ("entry", f"{record.seq:,}"),
            ("via", tag("bdi", record.via) if record.via else ""),
        ]
    )
    yield _mapping("Facts", record.facts)


def _verification(found: Verification) -> Iterable[Html]:
    wrong = text.count(len(found.problems), "problem")
    yield _header(
        "Verified" if found.ok else wrong, _badge("intact", "ok") if found.ok else _badge("not intact", "bad")
    )
    entries, blobs = text.count(found.entries, "entry", "entries"), text.count(found.blobs, "stored file")
    yield tag("p", f"{entries} and {blobs} checked", class_="dim")
    if found.problems:
        yield _folded(found.problems, lambda some: tag("ul", *(tag("li", p) for p in some)), "problem")
    for remark in found.remarks:
        yield tag("p", remark)
    if found.head:
        yield tag("h4", "Head")
        yield tag("p", tag("code", found.head))


def _repaired(report: RepairReport) -> Iterable[Html]:
    left = text.count(len(report.not_found), "file")
    yield _header(
        f"Repaired {text.count(len(report.repaired), 'file')}",
        _badge("nothing left", "ok") if report.ok else _badge(f"{left} not found", "bad"),
    )
    checked = text.count(report.checked, "stored file")
    yield tag("p", f"{checked} checked, bytes taken from ", tag("bdi", report.source), class_="dim")
    for title, items in (("Not found", report.not_found), ("Repaired", report.repaired)):
        if items:
            yield tag("h4", title)
            yield _folded(
                items, lambda some: tag("ul", *(tag("li", text.repair_line(one)) for one in some)), "file"
            )


def _report(report: IngestReport) -> Iterable[Html]:
    total = text.count(len(report.outputs), "output")
    state = _badge("nothing new") if report.repeated else _NOTHING
    wrong = _badge(text.count(len(report.alerts), "alert"), "bad") if report.alerts else _NOTHING
    yield _header(f"Ingested {total}", state, wrong)
    if report.outputs:
        yield tag("p", text.size(sum(output.size for output in report.outputs)), class_="dim")
    if report.versions:
        yield tag("h4", "Model versions")
        yield _table(
            (),
            [
                (
                    tag("code", version.uri),
                    _status(version),
                    join(
                        (
                            join(
                                [
                                    tag("span", tag("bdi", name), class_="dim"),
                                    " ",
                                    _value(version.metrics[name]),
                                ]
                            )
                            for name in list(version.metrics)[:3]
                        ),
                        " · ",
                    ),
                )
                for version in report.versions
            ],
        )
    for title, uris in (("Dataset versions", report.dataset_versions), ("Datums", report.datums)):
        if uris:
            yield tag("h4", title)
            yield tag("ul", *(tag("li", tag("code", uri)) for uri in uris))
    if report.alerts:
        yield tag("h4", "Alerts")
        yield _folded(
            report.alerts,
            lambda some: _table(
                (),
                [
                    (
                        tag("code", ":".join(str(p) for p in (a.file, a.line, a.column) if p is not None)),
                        join([tag("bdi", a.message)]),
                    )
                    for a in some
                ],
            ),
            "alert",
        )
    if report.outputs:
        yield _files([File(output.path, output.size, output.digest) for output in report.outputs])


def _resolved(resolved: Resolved) -> Iterable[Html]:
    version = resolved.version
    yield _header(tag("code", resolved.uri), _status(version) if isinstance(version, ModelVersion) else "")
    yield tag(
        "p", "in ", tag("code", resolved.path), " · as of ", _when(resolved.as_of), " UTC", class_="dim"
    )
    known = {} if isinstance(version, Datum) else {file.path: file for file in version.files}
    files = [known.get(path) or File(path, 0, "") for path in resolved.files]
    if all(file.digest for file in files):
        yield _files(files)
    else:
        yield tag("ul", *(tag("li", tag("code", path)) for path in resolved.files[:_MANY]))


_RUN_LOOKS = {"completed": "ok", "failed": "bad", "running": "pending", "interrupted": "pending"}


def _run_status(run: RunRecord) -> Html:
    return _badge(run.status, _RUN_LOOKS.get(run.status, ""))


def _uris(title: str, uris: Sequence[str]) -> Html:
    if not uris:
        return _NOTHING

    def show(some: Sequence[str]) -> Html:
        return tag("ul", *(tag("li", tag("code", tag("bdi", uri))) for uri in some))

    return join([tag("h4", title), _folded(uris, show, "URI")])


def _inputs(inputs: Sequence[RunInput]) -> Html:
    if not inputs:
        return _NOTHING

    def line(read: RunInput) -> list[Html]:
        total = sum(file.size for file in read.files)
        first = _digest(read.files[0].digest) if len(read.files) == 1 else _NOTHING
        return [
            _words(read.name) if read.name else tag("span", "seen", class_="dim") if read.seen else _NOTHING,
            join([tag("code", _words(read.uri)), _badge("changed", "bad") if read.changed else None], " "),
            esc(text.count(len(read.files), "file")) if read.files else _NOTHING,
            esc(text.size(total)) if read.files else _NOTHING,
            first,
        ]

    def show(some: Sequence[RunInput]) -> Html:
        return _table((), [line(read) for read in some], right=[2, 3])

    return join([tag("h4", "Inputs"), _folded(inputs, show, "input")])


def _made_of(record: RunRecord | LineageRecord) -> Iterable[Html]:
    """The parts that a run and a lineage share."""
    if len(record.metrics) <= 8:
        yield _tiles(record.metrics)
    else:
        yield _mapping("Metrics", record.metrics)
    yield _inputs(record.inputs)
    outputs = [File(output.path, output.size, output.digest) for output in record.outputs]
    sides = [_mapping("Parameters", record.params), _files(outputs, "output")]
    yield tag("div", *(tag("div", side) for side in sides if side), class_="cols")


def _surroundings(record: RunRecord | LineageRecord) -> list[tuple[object, object]]:
    code, environment = record.code, record.environment
    unseen = ", ".join(environment.unseen)
    return [
        ("code", tag("span", _words(what), title=code.commit) if (what := text.code_of(code)) else ""),
        ("repository", _words(code.repository) if code.repository else ""),
        ("changes", _digest(code.diff) if code.diff else ""),
        ("environment", _words(where) if (where := text.environment_of(environment)) else ""),
        ("reads not seen", _words(unseen) if unseen else ""),
    ]


def _run(run: RunRecord) -> Iterable[Html]:
    yield _header(join([run.name, " ", tag("small", f"run #{run.number}")]), _run_status(run))
    took = f" · {text.duration(run.duration)}" if run.duration is not None else ""
    host = join([" on ", tag("bdi", run.host)]) if run.host else _NOTHING
    yield tag(
        "p", tag("code", run.uri), " · started ", _by(run.started_at, run.user), host, took, class_="dim"
    )
    if run.tags:
        yield tag("p", _chips(run.tags))
    ended = f"exit status {run.exit_status}" if run.exit_status is not None else None
    if run.exception or run.exit_status:
        yield _quote(run.exception or ended, *([ended] if run.exception and ended else []))
    if run.traceback:
        yield tag(
            "details", tag("summary", "Traceback"), tag("pre", esc(run.traceback[-_TRACEBACK:], lines=True))
        )
    yield from _made_of(run)
    yield _uris("Made", (*run.versions, *run.dataset_versions, *run.datums))
    if run.alerts:
        yield tag("h4", "Alerts")
        yield _folded(run.alerts, lambda some: tag("ul", *(tag("li", str(a)) for a in some)), "alert")
    yield tag("h4", "Origin")
    places = [(name, _words(getattr(run, name) or "")) for name in text.RUN_PLACES if getattr(run, name)]
    yield _pairs([*places, *_surroundings(run), ("attempts", f"{run.attempts}" if run.attempts > 1 else "")])


def _lineage(lineage: LineageRecord) -> Iterable[Html]:
    run = lineage.run
    beside = _run_status(run) if run else _badge("registered by hand")
    yield _header(join([tag("small", "lineage of "), tag("bdi", lineage.subject)]), beside)
    if run:
        made = join(["made by run ", tag("strong", f"#{run.number} "), tag("bdi", run.name), " · "])
        yield tag("p", made, _by(run.started_at, run.user), class_="dim")
    yield from _made_of(lineage)
    yield _uris("Comes from", lineage.parents)
    yield _uris("Datasets", lineage.datasets)
    if lineage.approvals:
        yield tag("h4", "Decisions")
        yield _table(
            (), [(_badge(d.status), _by(d.at, d.by), _words(d.reason or "")) for d in lineage.approvals]
        )
    if lineage.used_by:
        uses = [
            (tag("code", _words(use.asked)), _by(use.at, use.actor), _words(use.host or ""))
            for use in lineage.used_by
        ]
        yield tag("h4", "Used by")
        yield _folded(uses, lambda some: _table((), some), "use")
    if lineage.origin:
        yield tag("h4", "Before it came here")
        yield tag("p", _elsewhere(lineage.origin))
        past = [(_by(one.at, one.actor), _words(one.detail)) for one in lineage.history]
        yield _folded(past, lambda some: _table((), some), "record")
    if surroundings := _pairs(_surroundings(lineage)):
        yield tag("h4", "Origin")
        yield surroundings


def _comparison(comparison: Comparison) -> Iterable[Html]:
    models = {version.model for version in comparison.versions}
    one = next(iter(models)) if len(models) == 1 else text.count(len(models), "model")
    yield _header(
        join(
            [
                one,
                " ",
                tag(
                    "small",
                    ", ".join(comparison.labels)
                    if len(comparison.labels) <= 6
                    else text.count(len(comparison.labels), "version"),
                ),
            ]
        )
    )
    columns = len(comparison.labels) + 1
    head = tag(
        "tr",
        tag("th"),
        *(
            tag("th", tag("span", label, title=version.uri), " ", _status(version))
            for label, version in zip(comparison.labels, comparison.versions, strict=True)
        ),
    )
    lines: list[Html] = []
    for section, rows in comparison.sections.items():
        if section == "facts":
            rows = tuple(row for row in rows if row.name != "status")  # stands in the header
        lines.append(tag("tr", tag("th", section, colspan=columns, scope="rowgroup"), class_="group"))
        shown = rows if len(rows) <= _MANY else tuple(row for row in rows if row.changed)[:500]
        lines += [_row(section, row) for row in shown]
        if hidden := len(rows) - len(shown):
            left_out = f"{text.count(hidden, 'more row')} not shown"
            lines.append(tag("tr", tag("th", left_out, colspan=columns)))
    yield tag("table", tag("thead", head), tag("tbody", *lines), class_="cmp")


def _row(section: str, row: Row) -> Html:
    written = text.row_cells(row, limit=120)
    best = row.best
    cells: list[Html] = []
    for place, cell in enumerate(row.cells):
        if (
            isinstance(cell, File)
            and row.changed
            and cell.digest == getattr(row.cells[0], "digest", None)
            and place
        ):
            inside = tag("span", "same", class_="dim", title=cell.digest)
        elif isinstance(cell, (File, datetime, Opaque)) or cell is ABSENT or cell is None:
            inside = _value(cell)
        elif row.name == "digest" and section == "facts":
            inside = _digest(str(cell))
        elif section == "facts" and row.name in ("aliases", "tags") and isinstance(cell, tuple):
            inside = _chips((str(word) for word in cell), "alias" if row.name == "aliases" else "")
        else:
            full = text.number(cell, exact=True) if isinstance(cell, (int, float)) else None
            inside = (
                _words(written[place])
                if full is None or full == written[place]
                else tag("bdi", written[place], title=full)
            )
        if section == "metrics" and (change := row.change(place)):
            better = row.improved(place)
            look = "delta" if better is None else "delta up" if better else "delta down"
            inside = join([inside, tag("span", f"{change:+.3g}".replace("-", "−"), class_=look)])
        cells.append(tag("td", tag("span", inside, class_="best" if place in best else None), class_="num"))
    return tag("tr", tag("th", _words(row.name), scope="row"), *cells, class_=None if row.changed else "same")


def _listing(listing: Listing[Any]) -> Iterable[Html]:
    items = list(listing)
    kinds = {type(item) for item in items}
    nouns: dict[type, str] = {
        ModelVersion: "version",
        Model: "model",
        AuditRecord: "audit record",
        RunRecord: "run",
    }
    noun = nouns.get(next(iter(kinds)), "item") if len(kinds) == 1 else "item"
    yield _header(
        text.count(listing.total, noun),
        tag("span", f"the first {len(items):,} are shown", class_="dim")
        if listing.total > len(items)
        else None,
    )
    if not items:
        yield tag("p", "Nothing found.", class_="dim")
        return
    yield Html('<div style="height:.8em"></div>')
    if kinds == {ModelVersion}:
        names = text.common_keys(item.metrics for item in items)
        header = [
            "version",
            "status",
            *(tag("bdi", esc(name, limit=40)) for name in names),
            "size",
            "created (UTC)",
            "by",
            "tags",
        ]
        yield _folded(
            items,
            lambda some: _table(
                header, [_version_line(v, names) for v in some], right=range(2, 3 + len(names))
            ),
            noun,
        )
    elif kinds == {Model}:
        header = ["model", "latest", "versions", "owner", "modified (UTC)", "tags"]
        yield _folded(items, lambda some: _table(header, [_model_line(m) for m in some], right=[2]), noun)
    elif kinds == {RunRecord}:
        names = text.common_keys(item.metrics for item in items)
        shown = [tag("bdi", esc(name, limit=40)) for name in names]
        header = ["", "run", "status", *shown, "started (UTC)", "duration", "by"]
        flush = [0, *range(3, 3 + len(names)), 4 + len(names)]
        yield _folded(
            items, lambda some: _table(header, [_run_line(r, names) for r in some], right=flush), noun
        )
    elif kinds == {AuditRecord}:
        header = ["", "at (UTC)", "actor", "what", "via"]
        yield _folded(items, lambda some: _table(header, [_record_line(r) for r in some], right=[0]), noun)
    else:
        columns, flat = tables.rows(items)
        yield _folded(
            flat,
            lambda some: _table(columns, [[_value(line.get(c, ABSENT)) for c in columns] for line in some]),
            noun,
        )


def _version_line(version: ModelVersion, metrics: Sequence[str]) -> list[Html]:
    return [
        join([_short(version), " ", _chips(version.aliases, "alias")]),
        _status(version),
        *(_value(version.metrics.get(name, ABSENT)) for name in metrics),
        esc(text.size(version.size)),
        _when(version.created_at),
        _who(version.created_by),
        _chips(version.tags),
    ]


def _model_line(model: Model) -> list[Html]:
    title = tag("div", tag("bdi", model.title), class_="dim") if model.title else _NOTHING
    return [
        join([tag("strong", model.name), title]),
        _badge(f"v{model.latest}", "ok") if model.latest else tag("span", "–", class_="dim"),
        esc(f"{model.last_number:,}"),
        tag("bdi", model.owner) if model.owner else _NOTHING,
        _when(model.modified_at),
        _chips(model.tags),
    ]


def _run_line(run: RunRecord, metrics: Sequence[str]) -> list[Html]:
    return [
        tag("span", f"#{run.number}", class_="dim"),
        tag("strong", _words(run.name, 60)),
        _run_status(run),
        *(_value(run.metrics.get(name, ABSENT)) for name in metrics),
        _when(run.started_at),
        esc(text.duration(run.duration)) if run.duration is not None else _NOTHING,
        _who(run.user),
    ]


def _record_line(record: AuditRecord) -> list[Html]:
    return [
        tag("span", f"{record.seq:,}", class_="dim"),
        _when(record.at),
        _who(record.actor),
        _words(record.detail, 500),
        tag("span", _words(record.via, 80), class_="dim") if record.via else _NOTHING,
    ]


_RENDERERS: tuple[tuple[type, Callable[[Any], Iterable[Html]]], ...] = (
    (Comparison, _comparison),
    (ModelVersion, _version),
    (Model, _model),
    (Dataset, _dataset),
    (DatasetVersion, _dataset_version),
    (Datum, _datum),
    (Alias, _alias),
    (AuditRecord, _record),
    (Verification, _verification),
    (RepairReport, _repaired),
    (IngestReport, _report),
    (Resolved, _resolved),
    (RunRecord, _run),
    (LineageRecord, _lineage),
    (Listing, _listing),
)
