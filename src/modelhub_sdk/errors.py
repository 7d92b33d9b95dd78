"""Every error that this library raises, one tree.

::

    ModelHubError
    ├── InvalidName          (ValueError)       a name, path, tag or user that cannot be used
    ├── InvalidURI           (ValueError)       a model://, dataset:// or datum:// text that does not parse
    ├── InvalidQuery         (ValueError)       a where=, order_by= or limit= that does not parse
    ├── InvalidDocument      (ValueError)       content that cannot be stored or read: values, sidecars, journal
    ├── NotFound             (LookupError)      no such model, version, alias, file
    │   └── NoApprovedVersion                   `latest` of a model that has none
    ├── NotApproved          (PermissionError)  the version exists, and its status forbids this use
    ├── NotAllowed           (PermissionError)  the user, the mode or a policy forbids this
    │   └── Unmet                               a policy's requirements are not met
    ├── Conflict             (RuntimeError)     somebody else changed it first
    │   └── KeyReused                           one idempotency key for two different contents
    ├── Busy                 (TimeoutError)     others held the registry for longer than our patience
    ├── ClockSkew            (RuntimeError)     this machine's clock is too far from the store's
    ├── Purged               (LookupError)      the files were removed on purpose: by whom, when, why
    ├── DigestMismatch       (OSError)          bytes are not those that were registered
    ├── Offline              (ConnectionError)  the answer needs the store, and the store is out of reach
    ├── StoreUnavailable     (OSError)          the store or the disk refused or did not answer
    │   └── CredentialsRefused (PermissionError)
    ├── UnsafeStore          (RuntimeError)     this place cannot keep a journal safely
    ├── JournalTooNew        (RuntimeError)     written by a newer release; upgrade
    ├── ChildFailed          (RuntimeError)     a program that a run called ended with a status other than 0
    └── MissingExtra         (ImportError)      an optional dependency; the message has the pip line

Each class also derives from the builtin that a caller would expect. An error carries its facts
as attributes, says what to do next, and survives pickling. Foreign exceptions never pass through.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "Busy",
    "ChildFailed",
    "ClockSkew",
    "Conflict",
    "CredentialsRefused",
    "DigestMismatch",
    "InvalidDocument",
    "InvalidName",
    "InvalidQuery",
    "InvalidURI",
    "JournalTooNew",
    "KeyReused",
    "MissingExtra",
    "ModelHubError",
    "NoApprovedVersion",
    "NotAllowed",
    "NotApproved",
    "NotFound",
    "Offline",
    "Purged",
    "StoreUnavailable",
    "Unmet",
    "UnsafeStore",
]


def shown(value: object, limit: int = 80) -> str:
    """Return *value* as one short printable ASCII-quoted piece for an error text.

    Text is escaped (no control characters, no bidirectional tricks) and cut to *limit*; any
    other object is named by its type alone, because its ``repr`` may be huge, secret or raise.
    """
    if isinstance(value, str):
        text = str.__str__(value)
        cut = text if len(text) <= limit else text[:limit] + "…"
        return "'" + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut) + "'"
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        return str(value) if value.bit_length() < 256 else f"an integer of {value.bit_length()} bits"
    return f"an object of type {type(value).__name__}"


def nearest(word: str, known: Any, limit: int = 3) -> tuple[str, ...]:
    """Return up to *limit* of the *known* names that a typist of *word* may have meant."""
    import difflib

    return tuple(difflib.get_close_matches(word[:128], list(known)[:10_000], n=limit, cutoff=0.6))


class ModelHubError(Exception):
    """The root of all errors here. Never raised directly.

    Attributes:
        message: what was wrong, and where.
        hint: what to do next; may be empty.
    """

    def __init__(self, message: str, *, hint: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts
        for name, value in facts.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip() if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.facts)


def _rebuild(cls: type[ModelHubError], message: str, hint: str, facts: dict[str, Any]) -> ModelHubError:
    return cls(message, hint=hint, **facts)


class _Pointed(ModelHubError):
    """An error about a place in a text: prints the text with a caret under the fault."""

    source: str = ""
    span: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        head = super().__str__()
        if not self.source:
            return head
        start, end = self.span
        first = max(0, start - 60)  # a window, so that a megabyte of text stays out of the message
        piece = self.source[first : first + 120]
        line = "".join(c if c.isprintable() else "·" for c in piece)
        carets = "^" * max(1, min(end, first + 120) - start)
        dots = "…" if first else ""
        return f"{head}\n  {dots}{line}\n  {' ' * (len(dots) + start - first)}{carets}"


class InvalidName(ModelHubError, ValueError):
    """A name, path, tag or user that cannot be used.

    Attributes:
        nearest: a good name close to the bad one, or "".
    """

    nearest: str = ""


class InvalidURI(_Pointed, ValueError):
    """A URI that does not parse.

    Attributes:
        source: the text (possibly long).
        span: start and end of the fault in it, in characters.
    """


class InvalidQuery(_Pointed, ValueError):
    """A ``where=``, ``order_by=`` or ``limit=`` that cannot be used; fields as in `InvalidURI`."""


class InvalidDocument(ModelHubError, ValueError):
    """Content that cannot be stored or read.

    Attributes:
        problems: one sentence each.
    """

    problems: tuple[str, ...] = ()


class NotFound(ModelHubError, LookupError):
    """There is no such thing.

    Attributes:
        nearest: names that do exist and may have been meant.
    """

    nearest: tuple[str, ...] = ()


class NoApprovedVersion(NotFound):
    """`latest` was asked of a model that has no approved version.

    Attributes:
        model: its name.
        pending: the numbers that wait for a decision.
    """

    model: str = ""
    pending: tuple[int, ...] = ()


class NotApproved(ModelHubError, PermissionError):
    """The version exists, and its status forbids this use.

    Attributes:
        uri: the version.
        status: its status.
    """

    uri: str = ""
    status: str = ""


class NotAllowed(ModelHubError, PermissionError):
    """The user, the mode of the handle, or a setting forbids this."""


class Unmet(NotAllowed):
    """A policy's requirements are not met.

    Attributes:
        requirements: one sentence each.
    """

    requirements: tuple[str, ...] = ()


class Conflict(ModelHubError, RuntimeError):
    """Somebody else changed it first: read again, then decide again.

    Attributes:
        seq: the entry that changed it last.
    """

    seq: int = 0


class KeyReused(Conflict):
    """One idempotency key was used for two different contents."""


class Busy(ModelHubError, TimeoutError):
    """Others held the registry for longer than our patience. Nothing was changed; try again."""


class ClockSkew(ModelHubError, RuntimeError):
    """This machine's clock is too far from the store's.

    Attributes:
        seconds: how far, positive when this machine is ahead.
    """

    seconds: float = 0.0


class Purged(ModelHubError, LookupError):
    """The files of this version were removed on purpose; the message says by whom, when and why."""


class DigestMismatch(ModelHubError, OSError):
    """Bytes are not those that were registered.

    Attributes:
        expected: ``sha256:<hex>``.
        actual: ``sha256:<hex>``, or "" where the bytes could not be read whole.
        source: where the bytes came from.
    """

    expected: str = ""
    actual: str = ""
    source: str = ""


class Offline(ModelHubError, ConnectionError):
    """The answer needs the store, and the store is out of reach."""


class StoreUnavailable(ModelHubError, OSError):
    """The store or the disk refused, or did not answer.

    Attributes:
        damaged: what is stored in that place is damaged, so trying again does not help.
    """

    damaged: bool = False


class CredentialsRefused(StoreUnavailable, PermissionError):
    """The store answered, and refused our credentials."""


class UnsafeStore(ModelHubError, RuntimeError):
    """This place cannot keep a journal or a database safely."""


class JournalTooNew(ModelHubError, RuntimeError):
    """A newer release wrote this; reading on could give a wrong answer."""


class ChildFailed(ModelHubError, RuntimeError):
    """A program that a run called ended with a status other than 0.

    Attributes:
        status: the exit status; minus the number of the signal that ended it.
        run_id: the run.
    """

    status: int = 1
    run_id: str = ""


class MissingExtra(ModelHubError, ImportError):
    """An optional dependency is not installed; the message has the pip line.

    Attributes:
        extra: the extra to install.
    """

    extra: str = ""
