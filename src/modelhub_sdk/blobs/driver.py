"""The fsspec driver of a URL: opening it, waiting for it, and its errors in our words."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from modelhub_sdk.blobs.patience import patient
from modelhub_sdk.domain import external
from modelhub_sdk.errors import (
    CredentialsRefused,
    InvalidName,
    InvalidURI,
    MissingExtra,
    ModelHubError,
    StoreUnavailable,
    shown,
)
from modelhub_sdk.hidden import HiddenOptions, bare, hidden, shielded

T = TypeVar("T")

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
}

_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs"})  # a user never stands before these

_REFUSED = re.compile(
    r"NoCredentials|PartialCredentials|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|TokenRefresh"
    r"|AccessDenied|InvalidToken|AuthenticationFailed|Unauthorized|Forbidden|RefreshError|CredentialRetrieval"
)


def without_secrets(url: str) -> str:
    """Return *url* without user, password and query, which may hold secrets, and without a slash at its end."""
    if "://" not in url:
        return url
    scheme, mark, rest = external.plain(url).partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}".rstrip("/")


def foreign(exc: BaseException, doing: str, where: str) -> ModelHubError:
    """Return our error for what a driver raised; its text is not repeated, as it may hold secrets."""
    if isinstance(exc, ModelHubError):
        return exc
    word = type(exc).__name__
    said = f"{word} {exc}"
    if (
        isinstance(exc, PermissionError)
        or _REFUSED.search(said)
        or getattr(exc, "status", None) in (401, 403)
    ):
        return CredentialsRefused(
            f"Cannot {doing} {shown(where)}: the store refused our credentials ({word}).",
            hint="Check the credentials of this environment and what they may do there.",
        )
    number = exc.errno if isinstance(exc, OSError) else None
    reason = os.strerror(number) if isinstance(number, int) and number > 0 else word
    if isinstance(exc, TimeoutError) and not number:
        reason = "it is too slow"
    return StoreUnavailable(
        f"Cannot {doing} {shown(where)}: {reason}.",
        hint="Nothing half-written is visible; try again when the store answers.",
        errno=number,
    )


def _passing(exc: Exception) -> bool:
    """Return whether trying again may help."""
    if isinstance(
        exc, (ModelHubError, FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)
    ):
        return False
    if isinstance(exc, (TypeError, ImportError, NotImplementedError, AttributeError)):
        return False
    if isinstance(exc, ValueError) and not isinstance(exc, json.JSONDecodeError):  # a proxy's page, say
        return False
    if isinstance(exc, OSError) and exc.errno in (
        errno.ENOSYS,
        errno.ENOTDIR,
        errno.ENOSPC,
        errno.ENAMETOOLONG,
    ):
        return False
    said = f"{type(exc).__name__} {exc}"
    return not (
        _REFUSED.search(said) or "InvalidBucket" in said or "ParamValidation" in said or precondition(exc)
    )


def precondition(exc: Exception) -> bool:
    """Return whether a driver says that a condition of the request, such as If-None-Match, was not met."""
    return re.search(r"pre-?condition|ConditionalRequestConflict", str(exc), re.IGNORECASE) is not None


def unsupported(exc: Exception) -> bool:
    """Return whether a driver says that it cannot do that at all."""
    return (isinstance(exc, OSError) and exc.errno == errno.ENOSYS) or "NotImplemented" in str(exc)


def patiently(work: Callable[[], T], doing: str, where: str) -> T:
    """Return what *work* returns, trying again for a minute while a driver's errors may pass.

    Raises:
        FileNotFoundError, FileExistsError: as *work* raised it; to be caught by the caller.
        StoreUnavailable, CredentialsRefused: instead of anything else.
    """
    try:
        return patient(work, _passing, doing, where)
    except (FileNotFoundError, FileExistsError) as exc:
        bare(exc)  # the frames of a driver hold its keys
        raise
    except Exception as exc:  # noqa: BLE001 - it is raised as ours
        raise foreign(exc, doing, where) from bare(exc)


def open_filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the fsspec file system of *url* and the path in it.

    Raises:
        MissingExtra: its driver is not installed.
        InvalidURI: keys, or a version, stand in the URL of an object store.
        InvalidName: the URL, its protocol or an option is unknown.
        StoreUnavailable, CredentialsRefused: the driver could not start.
    """
    place, options = hidden(url), HiddenOptions(options)
    del url
    return shielded(lambda: _open_filesystem(place.reveal(), options), ModelHubError)


def _open_filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    protocol = url.partition("://")[0]
    if "::" in url:
        raise InvalidName(f"{shown(without_secrets(url))} chains URLs (::).", hint="Pass one plain URL.")
    if protocol in _BUCKETS:
        _check_bucket(url)
    try:
        import fsspec.core

        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as exc:
        extra = _EXTRAS.get(protocol, "")
        line = (
            f"pip install 'modelhub-sdk[{extra}]'"
            if extra
            else f"Install the fsspec driver for {protocol}://."
        )
        raise MissingExtra(f"The driver for {protocol}:// is not installed.", hint=line, extra=extra) from exc
    except (ValueError, TypeError) as exc:
        raise InvalidName(
            f"{shown(without_secrets(url))} cannot be opened: its protocol or an option of it is unknown.",
            hint="Use a folder or a URL that fsspec knows, such as s3://bucket/path.",
        ) from _quotable(exc, url)
    except Exception as exc:  # noqa: BLE001 - it is raised as ours
        raise foreign(exc, "open", without_secrets(url)) from _quotable(exc, url)
    return fs, path


def _check_bucket(url: str) -> None:
    """Raise InvalidURI for what a driver would look for in vain, or would quote."""
    bucket, _, key = url.partition("://")[2].partition("/")
    if "@" in bucket or (":" in bucket and not bucket.startswith("arn:")):
        raise InvalidURI(
            f"A user or a password stands in {shown(without_secrets(url), 200)}.",
            hint="Keys belong into the environment of the driver, or into storage_options=.",
        )
    if "?versionId=" in key:
        raise InvalidURI(
            f"{shown(without_secrets(url), 200)} names a version of an object.",
            hint="Leave ?versionId=… away: what is there now is read.",
        )


def _quotable(exc: Exception, url: str) -> Exception | None:
    """Return the cause to be told; None where its text may quote a secret of the URL."""
    return exc if external.plain(url) == url else None


__all__ = ["foreign", "open_filesystem", "patiently", "precondition", "unsupported", "without_secrets"]
