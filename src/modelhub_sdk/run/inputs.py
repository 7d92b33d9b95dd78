"""Inputs as Valohai lays them out: a folder for each, with the files of all its URLs (VALOHAI.md, section 3).

The rules that are ours, where Valohai's are unknown or lose something: two files that would get one name are
an error, which names both (Valohai overwrites the first); where nothing is said of `keep`, the files of model
and dataset versions keep their folders.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from attrs import evolve, frozen

from modelhub_sdk.blobs import disk, place, progress
from modelhub_sdk.domain import names
from modelhub_sdk.domain.entities import Datum, File, Resolved
from modelhub_sdk.domain.lineage import RunInput
from modelhub_sdk.domain.uri import parse_uri, quote_path
from modelhub_sdk.errors import (
    Conflict,
    InvalidDocument,
    InvalidName,
    InvalidURI,
    ModelHubError,
    NotFound,
    shown,
)
from modelhub_sdk.index import data, runs
from modelhub_sdk.run import masking

if TYPE_CHECKING:
    from modelhub_sdk.blobs.urls import Found
    from modelhub_sdk.registry import Registry

Keep = Literal["none", "suffix", "full"]

log = logging.getLogger("modelhub_sdk")

OURS = ("model://", "dataset://", "datum://")
_NAME = re.compile(r"[^/\\\0]{1,64}")
_PARAMETER = re.compile(r"\{parameter:([^{}]+)\}")
_KEEP_HINT = "Write 'none', 'suffix' or 'full'."
_NOTED = 1000  # files of one folder or wildcard up to which this machine notes the digest of each
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

    `name` is its path in the input's folder (until it is laid out, its whole path where it comes from),
    `path` where it stands on this disk (None: not downloaded), `source` its path in the version or on
    the store. `uri` is pinned, without secrets. Of a plain URL `tag` is what its store calls this state of it
    (ETag, version, generation); of that and of a path `before` is the digest that this machine had seen there.
    """

    name: str
    source: str
    uri: str
    size: int
    digest: str
    path: Path | None = None
    datum_id: str | None = None
    tag: str | None = None
    before: str | None = None
    metadata: tuple[Mapping[str, Any], ...] = ()


@frozen
class PlacedInput:
    """An input on this disk; `uris` are pinned, `folder` is None when it has no files here.

    `alerts` say of which plain URLs and paths the bytes are others than those that were seen there before.
    """

    name: str
    uris: tuple[str, ...]
    files: tuple[InputFile, ...]
    folder: Path | None = None
    alerts: tuple[str, ...] = ()

    def run_inputs(self) -> list[RunInput]:
        """Return what a run records of it: one for each version, one for each plain URL."""
        found: dict[str, list[File]] = {uri: [] for uri in self.uris if uri.startswith(OURS)}
        tags = {file.uri: file.tag for file in self.files}
        for file in self.files:
            home = next((uri for uri in found if file.uri == uri or file.uri.startswith(uri + "/")), file.uri)
            found.setdefault(home, []).append(File(file.source, file.size, file.digest))
        return [
            RunInput(uri=uri, name=self.name, files=tuple(files), tag=tags.get(uri))
            for uri, files in found.items()
        ]


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
        if not isinstance(given, InputSpec):
            found.append(InputSpec(name, uri_texts(name, given)))
            continue
        if given.keep not in (None, "none", "suffix", "full"):
            raise InvalidName(f"keep of the input {shown(name)} is {shown(given.keep)}.", hint=_KEEP_HINT)
        found.append(evolve(given, name=name, uris=uri_texts(name, given.uris)))
    return tuple(found)


def is_name(name: object) -> bool:
    """Return whether an input can be called so: its folder is."""
    return (
        isinstance(name, str)
        and _NAME.fullmatch(name) is not None
        and name not in (".", "..")
        and name.isprintable()
    )


def uri_texts(name: str, given: Any) -> tuple[str, ...]:
    """Return the URIs of an input that was given as a URI, a path, a version, a list of them, or None.

    Raises:
        InvalidURI, InvalidName: one is neither; with the name of the input.
    """
    uris = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
    return tuple(_uri_text(name, uri) for uri in uris)


def _check_name(name: object) -> None:
    if not is_name(name):
        raise InvalidName(
            f"{shown(name)} is not the name of an input.", hint="Write 1 to 64 characters without a slash."
        )


def _uri_text(name: str, uri: object) -> str:
    text = getattr(uri, "uri", uri)
    if isinstance(text, os.PathLike):
        text = os.fsdecode(text)
    if not isinstance(text, str) or not text:
        raise InvalidURI(f"The input {shown(name)} is {shown(uri)}, not a URI or a path.")
    try:
        return names.check_text(text, "input", 8192)
    except InvalidName as error:
        raise named(error, name) from None


def substituted(uri: str, params: Mapping[str, Any]) -> str:
    """Return *uri* with each ``{parameter:x}`` replaced by the raw value of that parameter.

    Raises:
        InvalidURI: there is no such parameter.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in params or params[name] is None:
            known = ", ".join(map(shown, list(params)[:10])) or "none"
            raise InvalidURI(
                f"{shown(masking.url(uri))} needs the parameter {shown(name)}.", hint=f"There are: {known}."
            )
        return str(params[name])

    return _PARAMETER.sub(value, uri)


# --- laying out -------------------------------------------------------------------------------------------


def lay_out(
    reg: Registry, wanted: Iterable[InputSpec], into: Path, params: Mapping[str, Any]
) -> tuple[PlacedInput, ...]:
    """Bring all inputs into *into*, a folder for each; what is fetched for that goes through the cache.

    Everything is fetched and verified before the first folder appears, and folders that appeared go again
    when a later one cannot be put in its place. The files are the caller's own, never links to ours. An
    input without a URI that is optional has no folder (scripts look whether it is there).

    Raises:
        What resolving raises, with the name of the input; InvalidDocument: two files with one name.
    """
    wanted = tuple(wanted)
    for spec in wanted:  # before any name becomes a part of a path
        _check_name(spec.name)
    with reg._core.cache().holding() as hold:
        found = [_fetched(reg, spec, params, hold) for spec in wanted]
        for alert in (alert for one in found for alert in one.alerts):
            log.warning("%s", alert)
        return _all_placed(reg, found, into)


def _all_placed(reg: Registry, found: Sequence[PlacedInput], into: Path) -> tuple[PlacedInput, ...]:
    new = [into / one.name for one in found if not os.path.lexists(into / one.name)]
    made = not into.exists()
    try:
        return tuple(_placed(reg, one, into) for one in found)
    except BaseException:
        for folder in new:
            if os.path.lexists(folder):
                disk.remove_tree(str(folder))
        if made:
            with suppress(OSError):
                into.rmdir()
        raise


def _fetched(
    reg: Registry, spec: InputSpec, params: Mapping[str, Any], hold: Callable[[Iterable[File]], None]
) -> PlacedInput:
    if not spec.uris:
        if spec.optional:
            return PlacedInput(spec.name, (), ())
        raise NotFound(f"The input {shown(spec.name)} has no URI.", hint=f"Pass inputs={{{spec.name!r}: …}}.")
    uris: list[str] = []
    files: list[InputFile] = []
    for template in spec.uris:
        try:
            uri = _with_small_scheme(substituted(template, params))
            got = _of_registry(reg, uri) if uri.startswith(OURS) else _of_url(reg, uri)
            hold(File(file.name, file.size, file.digest) for file in got.files)
            files += [_laid(file, got, spec) for file in got.files]
        except ModelHubError as error:
            raise named(error, spec.name) from None
        uris += got.uris
    if spec.filename and len(files) == 1:
        files = [evolve(files[0], name=_forced(spec))]
    by_name: dict[str, InputFile] = {}
    for file in files:
        other = by_name.setdefault(file.name, file)
        if other is not file and (other.uri, other.digest) != (file.uri, file.digest):
            raise InvalidDocument(
                f"The input {shown(spec.name)} has two files {shown(file.name)}: {shown(other.uri, 200)} and"
                f" {shown(file.uri, 200)}.",
                hint="Make them two inputs; in a step of valohai.yaml keep-directories: full keeps their folders.",
            )
    try:
        names.check_paths(by_name)
    except ModelHubError as error:
        raise named(error, spec.name) from None
    chosen = tuple(by_name.values())
    if not spec.download:
        chosen = tuple(evolve(file, path=None) for file in chosen)
    return PlacedInput(spec.name, tuple(dict.fromkeys(uris)), chosen, alerts=_changed(reg, files))


def _with_small_scheme(uri: str) -> str:
    """Return a URI with its scheme in small letters: ``S3://`` means ``s3://``."""
    return re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*(?=://)", lambda match: match[0].lower(), uri)


def _forced(spec: InputSpec) -> str:
    try:
        return names.check_path(spec.filename, "filename")
    except ModelHubError as error:
        raise named(error, spec.name) from None


def named(error: ModelHubError, name: str) -> ModelHubError:
    """Return the error with the name of the input before its message, once."""
    start = f"The input {shown(name)} cannot be had: "
    error.message = start + error.message.removeprefix(start)
    error.args = (error.message,)
    return error


@frozen
class _Got:
    """What a URI gave: pinned URIs, files, and the folder where its wildcard begins (None: of a version)."""

    uris: list[str]
    files: list[InputFile]
    root: str | None = None


def _laid(file: InputFile, got: _Got, spec: InputSpec) -> InputFile:
    """Give a file its name in the input's folder."""
    keep = spec.keep or ("full" if got.root is None else "none")
    parts = [part for part in file.name.split("/") if part]
    if keep == "none":
        parts = parts[-1:]
    elif keep == "suffix" and got.root is not None:
        parts = parts[len([part for part in got.root.split("/") if part]) :]
    if not parts or "." in parts or ".." in parts or any("\0" in part for part in parts):
        raise InvalidURI(f"{shown(file.uri, 200)} names no file that can be put into a folder.")
    return evolve(file, name="/".join(parts))


def _placed(reg: Registry, one: PlacedInput, into: Path) -> PlacedInput:
    here = [file for file in one.files if file.path is not None]
    if not here:
        return one
    target = into / one.name
    by_name = {file.name: file for file in here}
    try:
        place.into(
            str(target),
            tuple(File(file.name, file.size, file.digest) for file in here),
            lambda file: Path(str(by_name[file.path].path)),
            link="reflink",  # or a copy: scripts write to their inputs and move them away
            overwrite=False,
            records=reg._core.cache().records,
            watch=lambda total: progress.bar(total, f"into {target.parent.name}/{target.name}"),
        )
    except Conflict as error:
        error.hint = "Move that folder away, or have the inputs in another one."
        raise
    files = tuple(
        evolve(file, path=target / file.name) if file.path is not None else file for file in one.files
    )
    return evolve(one, files=files, folder=target)


# --- from the registry --------------------------------------------------------------------------------------


def _of_registry(reg: Registry, uri: str) -> _Got:
    found = reg.resolve(uri)
    version = found.version
    inner = getattr(parse_uri(uri), "path", None)
    if isinstance(version, Datum):
        rows = [(version.name, version.size, version.digest, Path(found.path), found.uri)]
    else:
        rows = [
            (file.path, file.size, file.digest, path, f"{found.uri}/{quote_path(file.path)}")
            for file in version.files
            if (path := _path_of(found, inner, file.path)) is not None
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
    return _Got([found.uri], files)


def _path_of(found: Resolved, inner: str | None, path: str) -> Path | None:
    """Return where a file of the version stands; None when it is not *inner*, nor below it."""
    if inner is None or path == inner:
        return Path(found.path, path if inner is None else "")
    return Path(found.path, path.removeprefix(inner + "/")) if path.startswith(inner + "/") else None


# --- from anywhere else ---------------------------------------------------------------------------------------


def _of_url(reg: Registry, uri: str) -> _Got:
    uri = re.sub(r"\*\*(?=[^/*])", "**/*", uri)  # Valohai's **.csv is recursive; elsewhere ** stands alone
    if "\0" in uri:  # a parameter may have brought it
        raise InvalidURI(f"{shown(masking.url(uri), 200)} holds a NUL.")
    if "://" not in uri:
        return _of_disk(reg, uri.removeprefix("file:"))  # as a record names it
    if uri.startswith("file://"):
        host, _, path = uri.removeprefix("file://").partition("/")
        if host not in ("", "localhost"):
            raise InvalidURI(
                f"{shown(uri, 200)} is on the host {shown(host)}.",
                hint="Write file:///path, with three slashes.",
            )
        return _of_disk(reg, "/" + unquote(path))  # whole: ? is a wildcard here, and # a letter
    return _of_web(reg, uri) if uri.startswith(("http://", "https://")) else _of_store(reg, uri)


def _of_disk(reg: Registry, path: str) -> _Got:
    import glob

    from modelhub_sdk.blobs import urls

    if os.path.isdir(path):
        top, paths = path, sorted(str(one) for one in Path(path).rglob("*") if one.is_file())
    elif os.path.isfile(path):  # also one whose name looks like a wildcard
        top, paths = os.path.dirname(path), [path]
    else:
        top = os.path.dirname(re.split(r"[*?\[]", path, maxsplit=1)[0])
        paths = sorted(one for one in glob.glob(path, recursive=True) if os.path.isfile(one))
    if not paths:
        raise NotFound(
            f"There is no file {shown(path, 200)}.", hint="Look at the path; * and ** are wildcards."
        )
    here = _is_below(top)
    cache = reg._core.cache()
    files = []
    for one in paths:
        _check_utf8(one)
        digest, size = disk.hash_file(os.path.realpath(one))
        source, whole = _shown_path(one), os.path.abspath(one)
        before = urls.seen(cache, "file:" + whole, digest, size) if len(paths) <= _NOTED else None
        files.append(
            InputFile(_whole(one, here), source, "file:" + source, size, digest, Path(whole), before=before)
        )
    return _Got([file.uri for file in files], files, _whole(top, here))


def _check_utf8(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:  # a record, which is UTF-8, could not name it
        raise InvalidName(
            f"The name of the file {shown(path, 200)} is not UTF-8.", hint="Rename it."
        ) from None


def _is_below(folder: str) -> bool:
    return os.path.relpath(folder or ".").split(os.sep)[0] != os.pardir


def _whole(path: str, here: bool) -> str:
    """Return the path as ``full`` keeps it: from the working folder on, if it lies there, or from the root."""
    found = os.path.relpath(path or ".") if here else os.path.abspath(path).lstrip(os.sep)
    return "" if found == os.curdir else Path(found).as_posix()


def _shown_path(path: str) -> str:
    """Return a local path as it may stand in a record: below the working folder, else the name alone."""
    return Path(os.path.relpath(path)).as_posix() if _is_below(path) else Path(path).name


def _of_web(reg: Registry, uri: str) -> _Got:
    from modelhub_sdk.blobs import urls, web

    url = web.asked_for(uri)
    told = masking.record(url)
    path = unquote(urlsplit(url).path)
    if not path.rpartition("/")[2]:
        raise InvalidURI(f"{shown(told, 300)} names no file.", hint="Write the whole URL of a file.")
    if "*" in path:
        raise InvalidURI(
            f"{shown(told, 300)} has a wildcard, and a web server does not tell what fits one.",
            hint="Name the files one by one.",
        )
    found = urls.from_web(reg._core.cache(), url, told, masking.identity(url))
    name = path.lstrip("/")
    return _Got([told], [_from_url(name, told, found)], name.rpartition("/")[0])


def _from_url(name: str, told: str, found: Found) -> InputFile:
    return InputFile(
        name, name, told, found.size, found.digest, found.path, tag=found.tag, before=found.before
    )


def _of_store(reg: Registry, uri: str) -> _Got:
    from modelhub_sdk.blobs import driver, urls
    from modelhub_sdk.blobs.parallel import each

    told = masking.url(uri)
    url, given, account = _driver(uri)
    options = {**reg._core.options_of(url), **given}
    fs, path = driver.open_filesystem(url, options)
    keys = [path]
    if "*" in path:
        found = driver.patiently(lambda: _listed(fs, path), "list", told)
        keys = sorted(key for key, info in found.items() if info.get("type") != "directory")
        if not keys:
            raise NotFound(
                f"Nothing fits {shown(told, 300)}.", hint="Look at the wildcard, and at your rights."
            )
    cache = reg._core.cache()

    def fetched(key: str, _: Any) -> InputFile:
        whole = f"azure://{account}/{key}" if account else fs.unstrip_protocol(key)
        pinned = masking.record(whole)
        found = urls.from_store(cache, fs.unstrip_protocol(key), options, pinned, masking.identity(whole))
        return _from_url(_in_store(key), pinned, found)

    files = list(each(fetched, keys, None))
    root = _in_store(path.partition("*")[0].rpartition("/")[0] + "/")
    return _Got([file.uri for file in files], files, root)


def _listed(fs: Any, path: str) -> Mapping[str, Any]:
    """Return what fits a wildcard now, not when the driver last looked."""
    fs.invalidate_cache()
    found: Mapping[str, Any] = fs.glob(path, detail=True)
    return found


def _in_store(key: str) -> str:
    """Return what follows the bucket in a path of a driver."""
    return key.partition("/")[2]


def _driver(uri: str) -> tuple[str, dict[str, Any], str]:
    """Return the URL that a driver knows, its options, and the account of ``azure://account/container/blob``."""
    if not uri.startswith("azure://"):
        return uri, {}, ""
    account, _, rest = uri.removeprefix("azure://").partition("/")
    return f"abfs://{rest}", {"account_name": account}, account


def _changed(reg: Registry, files: Sequence[InputFile]) -> tuple[str, ...]:
    """Return a sentence for each plain URL or path whose bytes are not those that were last seen there.

    By a run of this registry; where there is none, by this machine. Of a path only this machine can tell: the
    same one, below another folder or on another machine, is another file.
    """
    plain = [file for file in files if not file.uri.startswith(OURS)]
    # What is told with *** may be several URLs, so nothing can be said of it but by this machine.
    known = [file.uri for file in plain if "://" in file.uri and masking.MASK not in file.uri]
    with reg._core.view() as view:
        recorded = runs.seen_at(view, known)
    alerts = []
    for file in plain:
        digest, by = recorded.get(file.uri, (file.before, ""))
        if digest not in (None, file.digest):
            who = f"the run {by}" if by else "this machine before"
            where = file.uri if "://" in file.uri else file.source
            alerts.append(
                f"The bytes behind {shown(where, 300)} have changed: {who} had {digest}, now it is {file.digest}."
            )
    return tuple(dict.fromkeys(alerts))


def checksums(file: InputFile) -> dict[str, str]:
    """Return the digests of a file as Valohai writes them; md5 and sha1 of small files only."""
    found = {"sha256": file.digest.removeprefix("sha256:")}
    if file.path is not None and file.size <= _SMALL:
        with suppress(OSError):
            content = file.path.read_bytes()
            makers: Sequence[tuple[str, Callable[..., Any]]] = (("md5", hashlib.md5), ("sha1", hashlib.sha1))
            found |= {name: make(content, usedforsecurity=False).hexdigest() for name, make in makers}
    return found
