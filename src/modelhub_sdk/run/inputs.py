"""Inputs as Valohai lays them out: a folder for each, with the files of all its URLs (VALOHAI.md, section 3).

The rules that are ours, where Valohai's are unknown or lose something: two files that would get one name are
an error, which names both (Valohai overwrites the first); where nothing is said of `keep`, the files of model
and dataset versions keep their folders.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from attrs import evolve, frozen

from modelhub_sdk.blobs import place
from modelhub_sdk.domain import names
from modelhub_sdk.domain.entities import Datum, File, Resolved
from modelhub_sdk.domain.lineage import RunInput
from modelhub_sdk.errors import (
    InvalidDocument,
    InvalidName,
    InvalidURI,
    ModelHubError,
    NotFound,
    StoreUnavailable,
    shown,
)
from modelhub_sdk.index import data
from modelhub_sdk.run import masking

if TYPE_CHECKING:
    from modelhub_sdk.registry import Registry

Keep = Literal["none", "suffix", "full"]

OURS = ("model://", "dataset://", "datum://")
_NAME = re.compile(r"[^/\\\0]{1,64}")
_PARAMETER = re.compile(r"\{parameter:([^{}]+)\}")
_SMALL = 100_000_000  # bytes of a file whose md5 and sha1 are worth a second reading


@frozen
class InputSpec:
    """An input: its name, the URIs that its files come from, and how they are laid out."""

    name: str
    uris: tuple[str, ...] = ()
    keep: Keep | None = None
    filename: str | None = None
    optional: bool = False
    download: bool = True


@frozen
class InputFile:
    """One file of an input.

    `name` is its path in the input's folder, `path` where it stands on this disk (None: not downloaded),
    `source` its path in the version or on the store. `uri` is pinned, without secrets.
    """

    name: str
    source: str
    uri: str
    size: int
    digest: str
    path: Path | None = None
    datum_id: str | None = None
    metadata: tuple[Mapping[str, Any], ...] = ()


@frozen
class PlacedInput:
    """An input on this disk; `uris` are pinned, `folder` is None when it has no files here."""

    name: str
    uris: tuple[str, ...]
    files: tuple[InputFile, ...]
    folder: Path | None = None

    def run_inputs(self) -> list[RunInput]:
        """Return what a run records of it: one for each version, one for each plain URL."""
        found: dict[str, list[File]] = {uri: [] for uri in self.uris if uri.startswith(OURS)}
        for file in self.files:
            home = next((uri for uri in found if file.uri == uri or file.uri.startswith(uri + "/")), file.uri)
            found.setdefault(home, []).append(File(file.source, file.size, file.digest))
        return [RunInput(uri=uri, name=self.name, files=tuple(files)) for uri, files in found.items()]


# --- what is asked for ------------------------------------------------------------------------------------


def specs(inputs: Mapping[str, Any]) -> tuple[InputSpec, ...]:
    """Return the inputs that a mapping of names to URIs means: a URI, a list of them, or an `InputSpec`.

    Raises:
        InvalidName, InvalidURI: with the name of the input.
    """
    if not isinstance(inputs, Mapping):
        raise InvalidName(
            f"inputs is {shown(inputs)}.", hint='Pass a mapping: {"data": "dataset://clicks/v7"}.'
        )
    found = []
    for name, given in inputs.items():
        _check_name(name)
        if isinstance(given, InputSpec):
            found.append(evolve(given, name=name))
            continue
        uris = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
        found.append(InputSpec(name, tuple(_uri_text(name, uri) for uri in uris)))
    return tuple(found)


def _check_name(name: object) -> None:
    if (
        not isinstance(name, str)
        or not _NAME.fullmatch(name)
        or name in (".", "..")
        or not name.isprintable()
    ):
        raise InvalidName(
            f"{shown(name)} is not the name of an input.", hint="Write 1 to 64 characters without a slash."
        )


def _uri_text(name: str, uri: object) -> str:
    text = getattr(uri, "uri", uri)
    if isinstance(text, os.PathLike):
        text = os.fsdecode(text)
    if not isinstance(text, str) or not text:
        raise InvalidURI(f"The input {shown(name)} is {shown(uri)}, not a URI or a path.")
    return names.check_text(text, "input", 8192)


def substituted(uri: str, params: Mapping[str, Any]) -> str:
    """Return *uri* with each ``{parameter:x}`` replaced by the raw value of that parameter.

    Raises:
        InvalidURI: there is no such parameter.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in params or params[name] is None:
            known = ", ".join(map(shown, list(params)[:10])) or "none"
            raise InvalidURI(f"{shown(uri)} needs the parameter {shown(name)}.", hint=f"There are: {known}.")
        return str(params[name])

    return _PARAMETER.sub(value, uri)


# --- laying out -------------------------------------------------------------------------------------------


def lay_out(
    reg: Registry, wanted: Iterable[InputSpec], into: Path, params: Mapping[str, Any], work: Path
) -> tuple[PlacedInput, ...]:
    """Bring all inputs into *into*, a folder for each; plain URLs are fetched into *work* first.

    Everything is fetched and verified before the first folder appears. An input without a URI that is
    optional has no folder (scripts look whether it is there).

    Raises:
        What resolving raises, with the name of the input; InvalidDocument: two files with one name.
    """
    found = [_fetched(reg, spec, params, work) for spec in wanted]
    return tuple(_placed(reg, one, into) for one in found)


def _fetched(reg: Registry, spec: InputSpec, params: Mapping[str, Any], work: Path) -> PlacedInput:
    if not spec.uris:
        if spec.optional:
            return PlacedInput(spec.name, (), ())
        raise NotFound(f"The input {shown(spec.name)} has no URI.", hint=f"Pass inputs={{{spec.name!r}: …}}.")
    uris: list[str] = []
    files: list[InputFile] = []
    for number, template in enumerate(spec.uris):
        try:
            uri = substituted(template, params)
            pinned, some = (
                _of_registry(reg, uri)
                if uri.startswith(OURS)
                else _of_url(uri, work / spec.name / str(number))
            )
        except ModelHubError as error:
            raise _named(error, spec.name) from None
        uris += pinned
        files += [_laid(file, uri, spec) for file in some]
    if spec.filename and len(files) == 1:
        files = [evolve(files[0], name=names.check_path(spec.filename))]
    by_name: dict[str, InputFile] = {}
    for file in files:
        other = by_name.setdefault(file.name, file)
        if other is not file and (other.uri, other.digest) != (file.uri, file.digest):
            raise InvalidDocument(
                f"The input {shown(spec.name)} has two files {shown(file.name)}: {shown(other.uri, 200)} and"
                f" {shown(file.uri, 200)}.",
                hint="keep-directories: full keeps their folders.",
            )
    chosen = tuple(by_name.values())
    if not spec.download:
        chosen = tuple(evolve(file, path=None) for file in chosen)
    return PlacedInput(spec.name, tuple(dict.fromkeys(uris)), chosen)


def _named(error: ModelHubError, name: str) -> ModelHubError:
    """Return the error with the name of the input before its message."""
    error.message = f"The input {shown(name)} cannot be had: {error.message}"
    error.args = (error.message,)
    return error


def _laid(file: InputFile, uri: str, spec: InputSpec) -> InputFile:
    """Give a file its name in the input's folder."""
    source = file.source
    keep = spec.keep or ("full" if uri.startswith(OURS) else "none")
    if keep == "none":
        return evolve(file, name=source.rpartition("/")[2])
    if keep == "suffix" and not uri.startswith(OURS):
        root = _key_of(uri).split("*")[0].rpartition("/")[0]
        return evolve(file, name=source.removeprefix(root).lstrip("/"))
    return evolve(file, name=source.lstrip("/"))


def _placed(reg: Registry, one: PlacedInput, into: Path) -> PlacedInput:
    here = [file for file in one.files if file.path is not None]
    if not here:
        return one
    target = into / one.name
    by_name = {file.name: file for file in here}
    names.check_paths(by_name)
    place.into(
        str(target),
        tuple(File(file.name, file.size, file.digest) for file in here),
        lambda file: Path(str(by_name[file.path].path)),
        link="auto",
        overwrite=False,
        records=reg._core.cache().records,
    )
    files = tuple(
        evolve(file, path=target / file.name) if file.path is not None else file for file in one.files
    )
    return evolve(one, files=files, folder=target)


# --- from the registry --------------------------------------------------------------------------------------


def _of_registry(reg: Registry, uri: str) -> tuple[list[str], list[InputFile]]:
    found = reg.resolve(uri)
    version = found.version
    if isinstance(version, Datum):
        rows = [(version.name, version.size, version.digest, Path(found.path), found.uri)]
    else:
        rows = [
            (file.path, file.size, file.digest, path, f"{found.uri}/{file.path}")
            for file in version.files
            if (path := _path_of(found, file.path)) is not None
        ]
    with reg._core.view() as view:
        datums = {digest: data.datum_of(view, digest) for _, _, digest, _, _ in rows}
    files = []
    for source, size, digest, path, place_uri in rows:
        datum = datums[digest]
        files.append(
            InputFile(
                name=source,
                source=source,
                uri=place_uri,
                size=size,
                digest=digest,
                path=path,
                datum_id=datum.id if datum else None,
                metadata=(dict(datum.properties),) if datum and datum.properties else (),
            )
        )
    return [found.uri], files


def _path_of(found: Resolved, path: str) -> Path | None:
    """Return where a file of the version stands, None when it was not asked for."""
    folder = Path(found.path)
    if folder.is_file():
        return folder if path.endswith("/" + folder.name) or path == folder.name else None
    if path in found.files:
        return folder / path
    inner = next((one for one in found.files if path.endswith("/" + one)), None)
    return folder / inner if inner is not None else None


# --- from anywhere else ---------------------------------------------------------------------------------------


def _key_of(uri: str) -> str:
    """Return the path of a URL on its store, or of a local file."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    return unquote(parts.path).lstrip("/") if parts.scheme != "file" else unquote(parts.path)


def _of_url(uri: str, work: Path) -> tuple[list[str], list[InputFile]]:
    uri = re.sub(r"\*\*(?=[^/*])", "**/*", uri)  # Valohai's **.csv is recursive; elsewhere ** stands alone
    local = uri if "://" not in uri else _key_of(uri) if uri.startswith("file://") else None
    return _of_disk(uri, local) if local is not None else _of_store(uri, work)


def _of_disk(uri: str, path: str) -> tuple[list[str], list[InputFile]]:
    import glob

    if any(c in path for c in "*?["):
        paths = sorted(one for one in glob.glob(path, recursive=True) if os.path.isfile(one))
    elif os.path.isdir(path):
        paths = sorted(str(one) for one in Path(path).rglob("*") if one.is_file())
    else:
        paths = [path] if os.path.isfile(path) else []
    if not paths:
        raise NotFound(
            f"There is no file {shown(path, 200)}.", hint="Look at the path; * and ** are wildcards."
        )
    files = []
    for one in paths:
        digest, size = _digests(Path(one))
        source = _shown_path(one)
        files.append(InputFile(source, source, "file:" + source, size, digest, Path(os.path.abspath(one))))
    return [file.uri for file in files], files


def _shown_path(path: str) -> str:
    """Return a local path as it may stand in a record: below the working folder, else the name alone."""
    relative = Path(os.path.relpath(path)).as_posix()
    return Path(path).name if relative.startswith("../") or relative == ".." else relative


def _of_store(uri: str, work: Path) -> tuple[list[str], list[InputFile]]:
    import fsspec

    told = masking.url(uri)
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        paths = sorted(fs.glob(path)) if "*" in path else [path]
        if not paths:
            raise NotFound(
                f"Nothing fits {shown(told, 300)}.", hint="Look at the wildcard, and at your rights."
            )
        files = []
        for number, one in enumerate(paths):
            if "*" in path and fs.isdir(one):
                continue
            target = work / str(number)
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(one, str(target))
            digest, size = _digests(target)
            source = unquote(urlsplit(one).path).lstrip("/") if "://" in one else one.partition("/")[2] or one
            files.append(
                InputFile(source, source, masking.url(fs.unstrip_protocol(one)), size, digest, target)
            )
    except ModelHubError:
        raise
    except FileNotFoundError:
        raise NotFound(f"There is nothing at {shown(told, 300)}.", hint="Look at the URL.") from None
    except ImportError as error:
        from modelhub_sdk.errors import MissingExtra

        raise MissingExtra(
            f"{shown(told, 300)} needs a driver that is not installed: {shown(str(error), 200)}.",
            hint="Install the extra of its store: pip install 'modelhub-sdk[s3]' (or gcs, azure).",
        ) from None
    except (ValueError, TypeError) as error:
        raise InvalidURI(
            f"{shown(told, 300)} cannot be read: {shown(masking.text(str(error)), 200)}."
        ) from None
    except Exception as error:  # noqa: BLE001  # every driver has errors of its own
        raise StoreUnavailable(
            f"{shown(told, 300)} cannot be read: {type(error).__name__}: {shown(masking.text(str(error)), 200)}."
        ) from None
    return [file.uri for file in files], files


def _digests(path: Path) -> tuple[str, int]:
    from modelhub_sdk.blobs import disk

    digest, size = disk.hash_file(os.path.realpath(path))
    return digest, size


def checksums(file: InputFile) -> dict[str, str]:
    """Return the digests of a file as Valohai writes them; md5 and sha1 of small files only."""
    found = {"sha256": file.digest.removeprefix("sha256:")}
    if file.path is not None and file.size <= _SMALL:
        with suppress(OSError):
            content = file.path.read_bytes()
            makers: Sequence[tuple[str, Callable[..., Any]]] = (("md5", hashlib.md5), ("sha1", hashlib.sha1))
            found |= {name: make(content, usedforsecurity=False).hexdigest() for name, make in makers}
    return found
