"""The human-readable record of every event: one sentence each."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from modelhub_sdk.domain import events as ev


def action_of(kind: str) -> str:
    """Return the action that an event kind is shown as: the kind itself."""
    return kind


def described(event: ev.Event, texts: Mapping[str, str]) -> tuple[str, str]:
    """Return what *event* is about (a URI, or "" for the registry), and a sentence about it.

    *texts* maps seals to what they stand for; a text that was erased is shown as such.
    """
    subject = _subject(event)
    sentence = _said(event, subject, texts)
    reason = getattr(event, "reason", None)
    if reason:
        sentence += f": {texts.get(reason, '(redacted)')}"
    return subject, sentence


def _subject(event: ev.Event) -> str:
    about, number = event.about
    kind, colon, rest = about.partition(":")
    if kind == "dataset" and colon:
        version = getattr(event, "version", "") if isinstance(event, ev.DatasetVersionCreated) else ""
        return f"dataset://{rest}/{version}"
    if kind in ("run", "datum") and colon:
        return about if kind == "run" else f"datum://{rest}"
    return f"model://{about}/v{number}" if about and number else f"model://{about}/" if about else ""


@functools.singledispatch
def _said(event: ev.Event, subject: str, texts: Mapping[str, str]) -> str:
    name = event.name if isinstance(event, ev.Unknown) else event.kind
    return f"{name} (of a newer release) {subject}".rstrip()


@_said.register
def _(event: ev.RegistryCreated, subject: str, texts: Mapping[str, str]) -> str:
    place = f", artifacts in {event.artifacts}" if event.artifacts else ""
    return f"created the registry {event.id}{place}"


@_said.register
def _(event: ev.SettingsChanged, subject: str, texts: Mapping[str, str]) -> str:
    return "configured " + ", ".join(f"{name} = {value!r}" for name, value in sorted(event.settings.items()))


@_said.register
def _(event: ev.RegistryFrozen, subject: str, texts: Mapping[str, str]) -> str:
    return "froze the registry"


@_said.register
def _(event: ev.RegistryThawed, subject: str, texts: Mapping[str, str]) -> str:
    return "unfroze the registry"


@_said.register
def _(event: ev.Redacted, subject: str, texts: Mapping[str, str]) -> str:
    return f"redacted {event.what} of {subject}"


@_said.register
def _(event: ev.UserForgotten, subject: str, texts: Mapping[str, str]) -> str:
    return f"forgot {event.pseudonym}: {len(ev.erased_by(event)):,} texts erased"


@_said.register
def _(event: ev.ModelCreated, subject: str, texts: Mapping[str, str]) -> str:
    return f"created {subject}" + _changes(
        event.texts, event.fields, texts, tags=event.tags, projects=event.projects
    )


@_said.register
def _(event: ev.ModelEdited, subject: str, texts: Mapping[str, str]) -> str:
    return f"edited {subject}" + _changes(
        event.texts,
        event.fields,
        texts,
        tags=(*(f"+{t}" for t in event.add_tags), *(f"-{t}" for t in event.remove_tags)),
        projects=(*(f"+{p}" for p in event.add_projects), *(f"-{p}" for p in event.remove_projects)),
    )


@_said.register
def _(event: ev.VersionEdited, subject: str, texts: Mapping[str, str]) -> str:
    tags = (*(f"+{t}" for t in event.add_tags), *(f"-{t}" for t in event.remove_tags))
    return f"edited {subject}" + _changes(event.texts, event.fields, texts, tags=tags)


@_said.register
def _(event: ev.AliasMoved, subject: str, texts: Mapping[str, str]) -> str:
    targets = ", ".join(
        f"v{number}" if weight == 100 else f"v{number} ({weight} %)"
        for number, weight in sorted(event.weights.items())
    )
    return f"pointed {subject}{event.alias} at {targets}"


@_said.register
def _(event: ev.AliasDeleted, subject: str, texts: Mapping[str, str]) -> str:
    return f"deleted the alias {subject}{event.alias}"


@_said.register
def _(event: ev.VersionRegistered, subject: str, texts: Mapping[str, str]) -> str:
    count = f"{len(event.files)} files" if not event.document else "many files"
    if len(event.files) == 1:
        count = "1 file"
    whence = f" by run {event.run_id}" if event.run_id else ""
    if event.origin:
        whence = f", {event.origin.uri} of registry {event.origin.registry}"
    kept = ", by reference" if event.external else ""
    return f"registered {subject} ({count}, {event.size:,} bytes{kept}){whence}"


@_said.register
def _(event: ev.VersionCommented, subject: str, texts: Mapping[str, str]) -> str:
    return f"commented on {subject}: {texts.get(event.text, '(redacted)')}"


@_said.register
def _(event: ev.VersionAttached, subject: str, texts: Mapping[str, str]) -> str:
    return f"attached {event.name} ({event.size:,} bytes) to {subject}"


@_said.register
def _(event: ev.EvaluationAdded, subject: str, texts: Mapping[str, str]) -> str:
    metrics = ", ".join(f"{name} = {value}" for name, value in event.metrics.items())
    data = f" on {event.data}" if event.data else ""
    return f"evaluated {subject}{data}: {metrics}"


@_said.register
def _(event: ev.VersionApproved, subject: str, texts: Mapping[str, str]) -> str:
    return f"approved {subject}"


@_said.register
def _(event: ev.VersionRejected, subject: str, texts: Mapping[str, str]) -> str:
    return f"rejected {subject}"


@_said.register
def _(event: ev.VersionReopened, subject: str, texts: Mapping[str, str]) -> str:
    return f"reopened {subject}"


@_said.register
def _(event: ev.Archived, subject: str, texts: Mapping[str, str]) -> str:
    return f"archived {subject}"


@_said.register
def _(event: ev.Restored, subject: str, texts: Mapping[str, str]) -> str:
    return f"restored {subject}"


@_said.register
def _(event: ev.VersionPurged, subject: str, texts: Mapping[str, str]) -> str:
    what = "all files" if event.paths is None else ", ".join(event.paths)
    return f"purged {what} of {subject}"


@_said.register
def _(event: ev.BlobsCondemned, subject: str, texts: Mapping[str, str]) -> str:
    return f"condemned {_files(event.digests)} that nothing needs"


@_said.register
def _(event: ev.BlobsSpared, subject: str, texts: Mapping[str, str]) -> str:
    return f"spared {_files(event.digests)}, which are needed now"


@_said.register
def _(event: ev.BlobsDeleting, subject: str, texts: Mapping[str, str]) -> str:
    return f"began to delete {_files(event.digests)}"


@_said.register
def _(event: ev.BlobsDeleted, subject: str, texts: Mapping[str, str]) -> str:
    return f"deleted {_files(event.digests)} that nothing needed"


def _files(digests: tuple[str, ...]) -> str:
    return f"{len(digests)} stored file{'s' if len(digests) != 1 else ''}"


@_said.register
def _(event: ev.DatasetCreated, subject: str, texts: Mapping[str, str]) -> str:
    return f"created {subject}" + _changes(
        event.texts, event.fields, texts, tags=event.tags, projects=event.projects
    )


@_said.register
def _(event: ev.DatasetVersionCreated, subject: str, texts: Mapping[str, str]) -> str:
    count = (
        "many files" if event.document else "1 file" if len(event.files) == 1 else f"{len(event.files)} files"
    )
    base = f", based on {event.base}" if event.base else ""
    run = f" by run {event.run_id}" if event.run_id else ""
    return f"stored {subject} ({count}, {event.size:,} bytes{base}){run}"


@_said.register
def _(event: ev.DatasetAliasMoved, subject: str, texts: Mapping[str, str]) -> str:
    return f"pointed {subject}{event.alias} at {event.version}"


@_said.register
def _(event: ev.DatasetAliasDeleted, subject: str, texts: Mapping[str, str]) -> str:
    return f"deleted the alias {subject}{event.alias}"


@_said.register
def _(event: ev.DatumsStored, subject: str, texts: Mapping[str, str]) -> str:
    names = ", ".join(datum.name for datum in event.datums[:3])
    more = f" and {len(event.datums) - 3} more" if len(event.datums) > 3 else ""
    return f"stored {names}{more} as {'a datum' if len(event.datums) == 1 else 'datums'}"


@_said.register
def _(event: ev.DatumAliasMoved, subject: str, texts: Mapping[str, str]) -> str:
    return f"pointed datum://{event.alias} at {subject}"


@_said.register
def _(event: ev.RunStarted, subject: str, texts: Mapping[str, str]) -> str:
    commit = f" at commit {event.code.commit[:10]}" if event.code.commit else ""
    again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
    return f"started run {event.name}{commit}{again}"


@_said.register
def _(event: ev.RunFinished, subject: str, texts: Mapping[str, str]) -> str:
    took = f" after {event.duration:.1f} s" if event.duration is not None else ""
    why = f": {texts.get(event.exception, '(redacted)')}" if event.exception else ""
    return f"{'finished' if event.status == 'completed' else event.status} {subject}{took}{why}"


@_said.register
def _(event: ev.OutputsIngested, subject: str, texts: Mapping[str, str]) -> str:
    made = ", ".join((*event.versions, *event.dataset_versions)) or "no versions"
    alerts = f", {len(event.alerts)} alerts" if event.alerts else ""
    return f"ingested {'outputs' if event.document else f'{len(event.outputs)} outputs'}: {made}{alerts}"


@_said.register
def _(event: ev.UsesRecorded, subject: str, texts: Mapping[str, str]) -> str:
    return f"recorded {len(event.uses)} uses"


def _changes(
    texts: Mapping[str, str | None],
    fields: Mapping[str, str | None],
    known: Mapping[str, str],
    **lists: tuple[str, ...],
) -> str:
    parts = []
    for name, seal in texts.items():
        if seal is None:
            parts.append(f"{name} removed")
        else:
            text = known.get(seal, "(redacted)")
            parts.append(f"{name} {text if len(text) <= 60 and chr(10) not in text else 'changed'}")
    for name, seal in fields.items():
        if seal is None:
            parts.append(f"{name} removed")
        else:
            value = known.get(seal)
            parts.append(f"{name} = {'(redacted)' if value is None else value[2:][:60]}")
    parts += [f"{name} {', '.join(values)}" for name, values in lists.items() if values]
    return f" ({'; '.join(parts)})" if parts else ""
