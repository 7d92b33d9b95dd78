"""From a URL to a store. Nothing that is typed here is ever shown again: it may hold a password."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from attrs import field, frozen

from modelhub_sdk.errors import InvalidURI, ModelHubError, NotFound, StoreUnavailable, UnsafeStore, shown
from modelhub_sdk.hidden import HiddenOptions, hidden_place, shielded
from modelhub_sdk.ports import Store

_PG_OPTIONS = frozenset(
    {
        "application_name",
        "connect_timeout",
        "host",
        "keepalives",
        "keepalives_idle",
        "passfile",
        "password",
        "port",
        "sslcert",
        "sslkey",
        "sslmode",
        "sslrootcert",
        "target_session_attrs",
        "user",
    }
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


@frozen
class Place:
    """A store, and what the registry must know about where it is.

    Attributes:
        store: the store.
        artifacts: where bytes lie beside it when nothing else was said; None where that must be said.
        stated: the ``?artifacts=`` of the URL.
        local: whether making it needs no ``create=True``.
        own: local paths that are the registry's own and never an artifact.
    """

    store: Store
    artifacts: str | None
    stated: str | None = field(default=None, repr=False)
    local: bool = False
    own: tuple[str, ...] = ()


def connect(url: str | os.PathLike[str], *, read_only: bool, options: Mapping[str, Any]) -> Place:
    """Return the store that *url* names; nothing is created.

    Raises:
        InvalidURI: it names no store.
        UnsafeStore: it names a place that cannot keep a journal.
        MissingExtra: its driver is not installed.
    """
    url, options = hidden_place(url), HiddenOptions(options)
    # Whatever goes wrong below: those frames hold the URL in pieces.
    return shielded(lambda: _connect(url, read_only, options), Exception)


def _connect(url: str | os.PathLike[str], read_only: bool, options: Mapping[str, Any]) -> Place:
    text = os.fsdecode(url) if isinstance(url, (str, os.PathLike)) else ""
    if not text.strip():
        raise InvalidURI("The registry's URL is empty.", hint=_FORMS)
    if "\0" in text or any(ord(c) < 32 for c in text):
        raise InvalidURI("The registry's URL has a control character in it.", hint=_FORMS)
    match = _SCHEME.fullmatch(text)
    if match is None:
        if re.search(r"\b(host|dbname|user|password)\s*=", text):
            raise InvalidURI(
                "This looks like a libpq key/value string.", hint="Write postgresql://user@host/database."
            )
        if re.match(r"[A-Za-z]{2,}:", text):
            raise InvalidURI("This is neither a folder nor a URL with '://'.", hint=_FORMS)
        return _folder(Path(text), read_only)
    scheme, rest = match[1].lower(), match[2]
    if scheme in ("postgresql", "postgres") or scheme.startswith("postgresql+"):
        return _postgres(rest, read_only)
    if scheme == "sqlite":
        return _sqlite(rest, read_only)
    if scheme == "memory":
        return _memory(rest)
    if scheme in ("file", "local"):
        return _folder(Path(rest), read_only)
    return _other(scheme, rest, options, read_only)


_FORMS = "Use 'sqlite:///models.db', 'postgresql://user@host/database', a folder, or 's3://bucket/prefix'."


def _sqlite(rest: str, read_only: bool) -> Place:
    from modelhub_sdk.stores.sql import SqliteStore

    if not rest.startswith("/"):
        raise InvalidURI("After sqlite: come three slashes and a file.", hint="sqlite:///models.db")
    name = rest[1:]
    if name in ("", "/", ":memory:"):
        raise InvalidURI(
            "This would keep the registry in memory and lose it at exit.",
            hint="Name a file (sqlite:///models.db), or say memory:// where that is wanted.",
        )
    if "?" in name or "#" in name:
        raise InvalidURI("A sqlite URL has no options here.", hint="Write sqlite:///models.db alone.")
    path = Path(os.path.abspath(os.path.expanduser(name)))
    if path.is_dir():
        raise InvalidURI(
            f"{shown(str(path), 200)} is a folder, not a SQLite file.", hint=f"Open it as hub.open('{path}')."
        )
    artifacts = f"{path}.artifacts"
    own = (str(path), f"{path}-wal", f"{path}-shm", artifacts)
    return Place(SqliteStore(path, read_only=read_only), artifacts, local=True, own=own)


_memories: dict[str, Place] = {}


def _memory(rest: str) -> Place:
    """A journal in memory; the same name again is the same registry, in this process."""
    import tempfile

    from modelhub_sdk.stores.memory import MemoryStore

    if rest and rest in _memories:
        return _memories[rest]
    folder = tempfile.mkdtemp(prefix="modelhub-memory-")
    store = MemoryStore("memory://" + rest)
    import weakref

    weakref.finalize(store, _remove, folder)
    place = Place(store, folder, local=True, own=(folder,))
    if rest:
        _memories[rest] = place
    return place


def _remove(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _folder(given: Path, read_only: bool) -> Place:
    from modelhub_sdk.stores.files import Disk, FileStore

    path = Path(os.path.abspath(os.path.expanduser(given)))
    if (path.exists() and not path.is_dir()) or path.suffix.lower() in (".db", ".sqlite", ".sqlite3"):
        raise InvalidURI(
            f"{shown(str(path), 200)} is a file's name, and a folder is needed here.",
            hint=f"For SQLite write hub.open('sqlite:///{path}').",
        )
    store = FileStore(f"file://{path}", Disk(path), parallel=4, read_only=read_only)
    return Place(store, f"{path}/blobs", local=True, own=(str(path),))


def _postgres(rest: str, read_only: bool) -> Place:
    from modelhub_sdk.stores.sql import PostgresStore

    main, _, query = rest.partition("?")
    authority, slash, database = main.partition("/")
    hint = "Percent-encode special characters of the password: @ is %40, / is %2F, # is %23, ? is %3F."
    if "#" in rest or "@" in database or "@" in query or "/" in database:
        raise InvalidURI("This PostgreSQL URL cannot be read for certain.", hint=hint)
    userinfo, at, hosts = authority.rpartition("@")
    name, _, password = userinfo.partition(":")
    if hosts.startswith("[") or (not slash and not hosts):
        pass
    options: dict[str, Any] = {}
    if at:
        options["user"] = unquote(name)
        if password:
            options["password"] = unquote(password)
    names, ports = [], []
    for one in hosts.split(",") if hosts else ():
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(?::([0-9]{1,5}))?", one)
        if found is None:
            raise InvalidURI(
                "The host or port in this PostgreSQL URL cannot be read.",
                hint="postgresql://user@host:5432/database",
            )
        names.append(unquote(found[1].strip("[]")))
        ports.append(found[2] or "5432")
    if names:
        options["host"], options["port"] = ",".join(names), ",".join(ports)
    if database:
        options["dbname"] = unquote(database)
    stated = None
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key == "artifacts":
            stated = value
        elif key in _PG_OPTIONS:
            options[key] = value
        else:
            raise InvalidURI(
                f"The option {shown(key)} of a PostgreSQL URL is not allowed here.",
                hint="Server options could switch off what protects the journal; set them in the database.",
            )
    options.setdefault("connect_timeout", "10")
    options.setdefault("application_name", "modelhub_sdk")
    user = f"{options['user']}@" if "user" in options else ""
    place = ",".join(f"{host}:{port}" for host, port in zip(names, ports, strict=True))
    shown_url = f"postgresql://{user}{place}/{options.get('dbname', '')}"
    return Place(PostgresStore(HiddenOptions(options), shown_url, read_only=read_only), None, stated)


def _other(scheme: str, rest: str, options: Mapping[str, Any], read_only: bool) -> Place:
    from modelhub_sdk.stores.files import CREATE_ONLY, FileStore, Objects

    factory = _third_party(scheme)
    if factory is not None:
        try:
            store = factory(f"{scheme}://{rest}", **options)
        except ModelHubError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is becomes one of ours
            raise StoreUnavailable(
                f"The store for {scheme}:// failed to open ({type(error).__name__})."
            ) from None
        return Place(store, getattr(store, "artifacts", None))
    if scheme in CREATE_ONLY:
        if (scheme not in ("abfs", "abfss", "az") and "@" in rest) or "?" in rest or "#" in rest:
            raise InvalidURI(
                f"Keys do not belong into a {scheme}:// URL.",
                hint="Put them into the environment of the driver, or into storage_options=.",
            )
        root = rest.strip("/")
        if not root or any(part in ("", ".", "..") for part in root.split("/")):
            raise InvalidURI(
                f"A {scheme}:// URL needs a bucket, and maybe a prefix.", hint=f"{scheme}://bucket/models"
            )
        return Place(
            FileStore(f"{scheme}://{root}", Objects(scheme, root, options), parallel=32, read_only=read_only),
            f"{scheme}://{root}/blobs",
        )
    from fsspec.registry import known_implementations

    if scheme in known_implementations:
        raise UnsafeStore(
            f"A journal cannot be kept on {scheme}://: it has no way to create a file for one writer only.",
            hint="Keep the journal in PostgreSQL, SQLite, a folder or S3; artifacts= may be there.",
        )
    raise InvalidURI(f"No store is known for {shown(scheme)}://.", hint=_FORMS)


def _third_party(scheme: str) -> Any:
    from importlib.metadata import entry_points

    for point in entry_points(group="modelhub_sdk.stores"):
        if point.name == scheme:
            try:
                return point.load()
            except Exception as error:  # noqa: BLE001  # whatever it is becomes one of ours
                raise StoreUnavailable(
                    f"The store for {scheme}:// ({shown(point.value)}) cannot be imported ({type(error).__name__})."
                ) from None
    return None


__all__ = ["NotFound", "Place", "connect"]
