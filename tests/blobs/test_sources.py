"""What users hand over to be stored: every shape of it, and everything that must be refused."""

from __future__ import annotations

import errno
import io
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelhub_sdk.blobs import patience, sources
from modelhub_sdk.blobs.sources import collect, name_in
from modelhub_sdk.errors import (
    Conflict,
    InvalidDocument,
    InvalidName,
    ModelHubError,
    NotAllowed,
    NotFound,
    StoreUnavailable,
)
from tests.support.web import Quiet, serving


def content(source: sources.Source) -> bytes:
    reader = source.open()
    try:
        pieces, view = [], memoryview(bytearray(1000))
        while got := reader.readinto(view):
            pieces.append(bytes(view[:got]))
        reader.finish()
    finally:
        reader.close()
    return b"".join(pieces)


def paths(found: sources.Sources) -> list[str]:
    return [source.path for source in found]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"weights")
    (folder / "sub" / "empty").write_bytes(b"")
    (folder / "sub" / "one").write_bytes(b"1")
    return folder


# --- shapes


def test_a_file_goes_by_its_name(out: Path) -> None:
    """A path to a file is stored under the file's own name, as str or Path."""
    for given in (out / "model.bin", str(out / "model.bin")):
        [source] = collect(given)
        assert (source.path, source.size, content(source)) == ("model.bin", 7, b"weights")


def test_a_folder_gives_its_content(out: Path) -> None:
    """A folder's files are stored relative to it, ordered by path; empty files are fine."""
    found = collect(out)
    assert paths(found) == ["model.bin", "sub/empty", "sub/one"]
    assert [content(source) for source in found] == [b"weights", b"", b"1"]
    assert found.total == 8


def test_an_empty_folder_has_no_files(tmp_path: Path) -> None:
    """An empty folder, and one of empty folders, gives nothing."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert paths(collect(tmp_path / "a")) == []


def test_a_list_keeps_folder_names(out: Path) -> None:
    """In a list a folder keeps its name, so that two of them do not mix."""
    assert paths(collect([out / "sub", out / "model.bin"])) == ["model.bin", "sub/empty", "sub/one"]
    assert paths(collect([str(out / "sub") + "/"])) == ["sub/empty", "sub/one"]


def test_a_mapping_names_each(out: Path) -> None:
    """A mapping goes from the path in the version to a path, a folder, bytes, or a file object."""
    with open(out / "model.bin", "rb") as stream:
        found = collect(
            {
                "w.bin": out / "model.bin",
                "x": b"abc",
                "y": bytearray(b"d"),
                "z": stream,
                "f": str(out / "sub"),
            }
        )
        assert {s.path: content(s) for s in found} == {
            "w.bin": b"weights", "x": b"abc", "y": b"d", "z": b"weights", "f/empty": b"", "f/one": b"1",
        }  # fmt: skip


def test_ignore_leaves_out(out: Path) -> None:
    """Patterns match a name anywhere, a whole folder with a slash at the end, or a path from the top."""
    (out / "a.tmp").write_bytes(b"")
    (out / "sub" / "b.tmp").write_bytes(b"")
    assert paths(collect(out, ignore="*.tmp")) == ["model.bin", "sub/empty", "sub/one"]
    assert paths(collect(out, ignore=["*.tmp", "sub/"])) == ["model.bin"]
    assert paths(collect(out, ignore=["*.tmp", "sub/o*"])) == ["model.bin", "sub/empty"]
    assert "sub" not in "".join(paths(collect(out, ignore=["sub"])))


@pytest.mark.parametrize(
    "given", [None, 5, b"abc", io.BytesIO(b"x"), [b"abc"], [["a"]], "", "a\0b", ["a\0b"], {"a": 5}]
)
def test_other_shapes_are_refused(given: Any) -> None:
    """What has no name or is no file is refused, and the message says how to pass it."""
    with pytest.raises(InvalidName):
        collect(given)


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a\\b", "", ".", "con", "C:x", "x\n", 5])
def test_names_in_a_mapping_are_checked(name: Any) -> None:
    """A path in the version is judged by the one rule for all platforms."""
    with pytest.raises(InvalidName):
        collect({name: b"x"})


def test_two_of_one_name_are_refused(out: Path, tmp_path: Path) -> None:
    """Two files under one path are an error, not a race."""
    (tmp_path / "model.bin").write_bytes(b"other")
    with pytest.raises(InvalidName):
        collect([out / "model.bin", tmp_path / "model.bin"])


# --- links


def test_links_are_followed_inside_a_folder(out: Path, tmp_path: Path) -> None:
    """A registered folder may be all links, as a Hugging Face snapshot is; the bytes are stored."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc").write_bytes(b"big")
    (out / "link.bin").symlink_to(tmp_path / "blobs" / "abc")
    (out / "folder").symlink_to(tmp_path / "blobs")
    (out / "again").symlink_to(tmp_path / "blobs")
    found = {s.path: content(s) for s in collect(out)}
    assert found["link.bin"] == found["folder/abc"] == found["again/abc"] == b"big"


def test_a_link_to_a_file_keeps_its_own_name(out: Path, tmp_path: Path) -> None:
    """A path that is a link is stored under the name of the link."""
    (tmp_path / "best.bin").symlink_to(out / "model.bin")
    assert [(s.path, content(s)) for s in collect(tmp_path / "best.bin")] == [("best.bin", b"weights")]


def test_a_link_to_a_folder_above_is_a_loop(out: Path) -> None:
    """A link back up would walk for ever: refused, by name."""
    (out / "sub" / "up").symlink_to("..")
    with pytest.raises(InvalidDocument, match="sub/up"):
        collect(out)
    assert paths(collect(out, ignore=["up"])) == ["model.bin", "sub/empty", "sub/one"]


def test_links_in_a_circle_are_refused(out: Path) -> None:
    """a -> b -> a is refused."""
    (out / "a").symlink_to("b")
    (out / "b").symlink_to("a")
    with pytest.raises(InvalidDocument, match="loop"):
        collect(out)
    with pytest.raises(InvalidDocument):
        collect(out / "a")


def test_a_dangling_link_is_refused(out: Path) -> None:
    """A link to nothing is NotFound and says that it is a link."""
    (out / "gone").symlink_to("nowhere")
    with pytest.raises(NotFound, match="leads nowhere"):
        collect(out)


def test_ingest_refuses_links_that_leave(out: Path, tmp_path: Path) -> None:
    """With inside=, links within the folder are fine, and a link out of it is refused."""
    (out / "ok").symlink_to("model.bin")
    assert "ok" in paths(collect(out, inside=out))
    (tmp_path / "secret").write_bytes(b"s")
    (out / "leak").symlink_to(tmp_path / "secret")
    with pytest.raises(NotAllowed, match="leak"):
        collect(out, inside=out)
    sibling = tmp_path / "out2"  # a name that begins alike is not inside
    sibling.mkdir()
    (out / "leak").unlink()
    (out / "leak").symlink_to(sibling)
    with pytest.raises(NotAllowed):
        collect(out, inside=out)


def test_refused_files_can_be_reported_instead(out: Path) -> None:
    """With refused=, a bad file is told and the others go on."""
    (out / "gone").symlink_to("nowhere")
    os.mkfifo(out / "pipe")
    told: list[tuple[str, ModelHubError]] = []
    found = collect(out, inside=out, refused=lambda path, exc: told.append((path, exc)))
    assert paths(found) == ["model.bin", "sub/empty", "sub/one"]
    assert [(path, type(exc)) for path, exc in told] == [("gone", NotFound), ("pipe", InvalidDocument)]


# --- objects that are no files


def test_a_fifo_is_refused_at_once(out: Path) -> None:
    """A FIFO neither blocks nor is stored, wherever it stands."""
    os.mkfifo(out / "pipe")
    for given in (out, out / "pipe", {"x": out / "pipe"}, [out / "pipe"]):
        with pytest.raises(InvalidDocument, match="FIFO"):
            collect(given)


def test_a_socket_is_refused(out: Path) -> None:
    """A UNIX socket is refused."""
    with socket.socket(socket.AF_UNIX) as server:
        place = os.getcwd()
        os.chdir(out)  # their paths are short
        try:
            server.bind("sock")
        finally:
            os.chdir(place)
        with pytest.raises(InvalidDocument, match="socket"):
            collect(out)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/random", "/dev/stdin", "/dev/tty"])
def test_devices_are_refused(device: str, out: Path) -> None:
    """A device never ends, blocks, or is nobody's artifact."""
    if not os.path.lexists(device):
        pytest.skip(f"no {device}")
    if (
        device == "/dev/stdin"
        and not stat.S_ISCHR(os.stat(0).st_mode)
        and not stat.S_ISFIFO(os.stat(0).st_mode)
    ):
        pytest.skip("standard input is a file here")
    (out / "link").symlink_to(device)
    for given in (device, out):
        with pytest.raises(ModelHubError):
            collect(given)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no procfs")
@pytest.mark.parametrize("name", ["mem", "maps", "cmdline", "environ"])
def test_proc_files_are_refused(name: str) -> None:
    """Files that say they are empty and are not, or fail in the middle, are refused while reading."""
    with pytest.raises(ModelHubError):
        for source in collect(f"/proc/self/{name}"):
            content(source)


def test_a_missing_path_is_not_found(tmp_path: Path) -> None:
    """What is not there is NotFound, also below a file."""
    (tmp_path / "file").write_bytes(b"")
    for given in (tmp_path / "x", tmp_path / "file" / "x", [tmp_path / "x"], {"a": str(tmp_path / "x")}):
        with pytest.raises(NotFound):
            collect(given)


def test_names_that_are_not_utf8_are_refused(out: Path) -> None:
    """A manifest cannot name them; the error can be printed."""
    with open(os.fsencode(out) + b"/\xff.bin", "wb"):
        pass
    with pytest.raises(InvalidName) as caught:
        collect(out)
    str(caught.value).encode()


def test_twins_under_nfc_are_refused(out: Path) -> None:
    """Two names that another file system would take for one are refused."""
    (out / "\u00e9").write_bytes(b"1")
    (out / "e\u0301").write_bytes(b"2")
    if len(list(out.iterdir())) < 4:
        pytest.skip("this disk normalises names")
    with pytest.raises(InvalidName):
        collect(out)


def test_very_deep_folders_end_in_a_typed_error(tmp_path: Path) -> None:
    """2,000 levels: no RecursionError, no OSError."""
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    try:
        with pytest.raises(ModelHubError):
            collect(tmp_path)
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=False)


def test_a_folder_that_may_not_be_read_is_refused(out: Path, as_nobody: Callable[..., Any]) -> None:
    """A folder of mode 000 in the middle is NotAllowed: nothing is registered without it."""
    os.chmod(out / "sub", 0)
    try:
        with pytest.raises(NotAllowed, match="sub"):
            as_nobody(lambda: paths(collect(out)))
        with pytest.raises(NotAllowed, match="sub"):
            as_nobody(lambda: paths(collect(out / "sub" / "one")))
    finally:
        os.chmod(out / "sub", 0o755)


def test_a_file_that_may_not_be_read_is_refused(out: Path, as_nobody: Callable[..., Any]) -> None:
    """A file of mode 000 is NotAllowed when it is opened."""
    os.chmod(out / "model.bin", 0)
    with pytest.raises(NotAllowed, match=r"model\.bin"):
        as_nobody(lambda: content(collect(out)[0]))


def test_the_registry_itself_is_refused(out: Path, tmp_path: Path) -> None:
    """Database, its companions and the artifacts are recognised directly, inside a folder, and through links."""
    (tmp_path / "models.db").write_bytes(b"db")
    (tmp_path / "models.db-wal").write_bytes(b"wal")
    (tmp_path / "models.db.artifacts" / "x").mkdir(parents=True)
    (tmp_path / "models.db.artifacts" / "x" / "y").write_bytes(b"blob")
    own = [tmp_path / "models.db", tmp_path / "models.db.artifacts", tmp_path / "not-yet-there"]
    os.link(tmp_path / "models.db", out / "hardlink")
    (tmp_path / "also").symlink_to(tmp_path / "models.db.artifacts")
    for given in (
        tmp_path / "models.db",
        tmp_path / "models.db-wal",
        tmp_path / "models.db.artifacts",
        tmp_path / "models.db.artifacts" / "x" / "y",
        tmp_path,
        tmp_path / "also",
        out,
        {"a": tmp_path / "models.db"},
    ):
        with pytest.raises(NotAllowed, match="itself"):
            collect(given, forbidden=own)
    assert paths(collect(tmp_path, forbidden=own, ignore=["models.db*", "also", "hardlink"]))


# --- changes while reading


def test_a_file_that_grows_is_an_error(out: Path) -> None:
    """A writer that appends for ever: the reader stops, and says that the file changed."""
    [source] = collect(out / "model.bin")
    reader = source.open()
    with open(out / "model.bin", "ab", buffering=0) as writer, pytest.raises(Conflict, match="changed"):
        while True:
            writer.write(b"more" * 1000)
            if not reader.readinto(memoryview(bytearray(100))):
                reader.finish()
                break
    reader.close()


@pytest.mark.parametrize("change", [b"w", b"weigh", b"WEIGHTS", b"weights and more"])
def test_a_file_changed_in_place_is_an_error(out: Path, change: bytes) -> None:
    """Shorter, longer, or the same size with other bytes: found after the last byte."""
    os.utime(out / "model.bin", ns=(0, 0))
    [source] = collect(out / "model.bin")
    reader = source.open()
    view = memoryview(bytearray(100))
    assert reader.readinto(view) == 7
    (out / "model.bin").write_bytes(change)
    with pytest.raises(Conflict):
        while reader.readinto(view):
            pass
        reader.finish()
    reader.close()


def test_a_file_replaced_before_it_is_opened_is_an_error(out: Path) -> None:
    """Between listing and opening another file took its name: refused."""
    found = collect(out)
    (out / "new").write_bytes(b"WEIGHTS")
    os.replace(out / "new", out / "model.bin")
    with pytest.raises(Conflict, match="replaced"):
        found[0].open()


def test_a_link_swapped_in_is_not_followed(out: Path, tmp_path: Path) -> None:
    """A file exchanged for a link to a secret after the check is refused, also deeper in the path."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "one").write_bytes(b"s")
    found = {source.path: source for source in collect(out)}
    (out / "model.bin").unlink()
    (out / "model.bin").symlink_to(tmp_path / "secret" / "one")
    with pytest.raises(Conflict):
        found["model.bin"].open()
    os.rename(out / "sub", tmp_path / "moved")
    (out / "sub").symlink_to(tmp_path / "secret")
    with pytest.raises(Conflict):
        found["sub/one"].open()


def test_a_fifo_swapped_in_does_not_block(out: Path) -> None:
    """A FIFO in the place of a listed file is an error, not a wait."""
    [source] = collect(out / "model.bin")
    (out / "model.bin").unlink()
    os.mkfifo(out / "model.bin")
    with pytest.raises(Conflict):
        source.open()


def test_replacing_while_reading_is_consistent(out: Path) -> None:
    """A rename over the file does not mix old and new bytes: one descriptor is read."""
    [source] = collect(out / "model.bin")
    reader = source.open()
    (out / "new").write_bytes(b"WEIGHTS")
    os.replace(out / "new", out / "model.bin")
    view = memoryview(bytearray(100))
    assert bytes(view[: reader.readinto(view)]) == b"weights"
    reader.finish()
    reader.close()


# --- file objects


class Stream:
    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def read(self, size: int = -1) -> Any:
        answer = self.answers.pop(0) if self.answers else b""
        if isinstance(answer, BaseException):
            raise answer
        return answer


def test_streams_of_odd_manners_are_read_right() -> None:
    """Short reads, and more than was asked for, give the bytes in order."""
    [source] = collect({"x": Stream(b"a", b"b" * 5000, bytearray(b"c"), memoryview(b"d"))})
    assert content(source) == b"a" + b"b" * 5000 + b"cd"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("text", InvalidDocument),
        (5, InvalidDocument),
        (None, StoreUnavailable),
        (OSError(errno.EIO, "bad sector"), StoreUnavailable),
        (ValueError("I/O operation on closed file"), InvalidDocument),
        (RuntimeError("theirs"), InvalidDocument),
    ],
)
def test_streams_that_fail_raise_ours(answer: Any, error: type[ModelHubError]) -> None:
    """Whatever a file object raises or returns becomes a typed error that names the path."""
    [source] = collect({"x.bin": Stream(b"first", answer)})
    with pytest.raises(error, match=r"x\.bin"):
        content(source)


def test_ctrl_c_in_a_stream_passes() -> None:
    """Ctrl-C is not an error of the stream."""
    [source] = collect({"x": Stream(KeyboardInterrupt())})
    with pytest.raises(KeyboardInterrupt):
        content(source)


# --- URLs


class Handler(Quiet):
    def answer(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        if self.path.startswith("/status/"):
            self.send_error(int(self.path[8:]))
            return
        self.send_response(200)
        self.send_header("Content-Disposition", 'attachment; filename="../../x"')
        self.send_header("Content-Length", str(20 if self.path == "/cut" else 4))
        self.end_headers()
        self.wfile.write(b"data")


@pytest.fixture
def web() -> Iterator[str]:
    with serving(Handler) as url:
        yield url


def test_a_web_file_is_read_under_our_name(web: str) -> None:
    """The name comes from the URL or the mapping, never from the server."""
    [source] = collect(f"{web}/models/a.bin?token=secret")
    assert (source.path, content(source)) == ("a.bin", b"data")
    assert "secret" not in repr(source)
    [source] = collect({"b.bin": f"{web}/to/{web}/c"})
    assert (source.path, content(source)) == ("b.bin", b"data")


def test_names_of_urls() -> None:
    """The name of a URL of the web is decoded once, and is a path like any other; a key of a store is what it is."""
    for url, name in (
        ("https://host/a/my%20model.bin", "my model.bin"),
        ("HTTPS://host/a/50%25.bin#x", "50%.bin"),
    ):
        assert [source.path for source in collect(url)] == [name]
    assert name_in("s3://bucket/a/my%20model.bin") == "my%20model.bin"
    for url in ("https://host/%2e%2e", "https://host/a%00b", "https://host/a%2525b"):
        with pytest.raises(InvalidName):
            collect(url)


def test_options_of_a_url() -> None:
    """Options may be the same for all URLs, or be asked for by URL."""
    asked: list[str] = []
    import fsspec

    fsspec.filesystem("memory").pipe_file("/opt/a.bin", b"1")
    try:
        collect(["memory://opt/a.bin"], storage_options=lambda url: asked.append(url) or {})
        assert asked == ["memory://opt/a.bin"]
    finally:
        fsspec.filesystem("memory").rm("/opt", recursive=True)


@pytest.mark.parametrize(
    "place",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[fd00:ec2::254]/",
    ],
)
def test_redirects_to_odd_places_are_not_followed(web: str, place: str) -> None:
    """No redirect leads to a file, another protocol or a machine's metadata service."""
    [source] = collect({"x": f"{web}/to/{place}"})
    with pytest.raises(NotAllowed):
        content(source)
    if place.startswith("http"):
        [source] = collect({"x": place})
        with pytest.raises(NotAllowed):
            content(source)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/status/404", NotFound),
        ("/status/403", StoreUnavailable),
        ("/status/500", StoreUnavailable),
        ("/cut", StoreUnavailable),
    ],
)
def test_web_errors_are_ours(
    web: str, path: str, error: type[ModelHubError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing, refused, broken and cut short: typed errors, those that may pass after some patience."""
    monkeypatch.setattr(patience, "_PATIENCE", 1.0)
    [source] = collect({"x": web + path})
    with pytest.raises(error):
        content(source)


def test_nobody_answers() -> None:
    """A port where nobody listens is StoreUnavailable."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    [source] = collect({"x": f"http://127.0.0.1:{port}/x"})
    with pytest.raises(StoreUnavailable):
        content(source)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "simplecache::s3://b/k",
        "zip://a::file:///x.zip",
        "nosuch://x/y",
        "local:///etc/passwd",
    ],
)
def test_odd_urls_are_refused(url: str) -> None:
    """Chained URLs, unknown protocols, and local files in disguise are refused."""
    with pytest.raises((InvalidName, NotFound)):
        collect({"x": url})


def test_fsspec_urls_are_sources() -> None:
    """Anything that fsspec reads can be registered; a folder or nothing there is an error."""
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/src/a.bin", b"abc" * 1000)
    memory.pipe_file("/src/empty", b"")
    try:
        [source] = collect("memory://src/a.bin")
        assert (source.path, source.size, content(source)) == ("a.bin", 3000, b"abc" * 1000)
        assert content(collect("memory://src/empty")[0]) == b""
        with pytest.raises(NotFound):
            collect("memory://src/none")
        with pytest.raises(InvalidName):
            collect({"x": "memory://src"})
        [source] = collect("memory://src/a.bin")
        memory.pipe_file("/src/a.bin", b"shorter")
        with pytest.raises(Conflict):
            content(source)
    finally:
        memory.rm("/src", recursive=True)


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_names_do_not_depend_on_the_locale(tmp_path: Path, locale: str) -> None:
    """With an ASCII locale and without UTF-8 mode the same folder gives the same paths."""
    (tmp_path / "é語.bin").write_bytes(b"x")
    code = "import sys; from modelhub_sdk.blobs.sources import collect; print(ascii(collect(sys.argv[1])[0].path))"
    environment = {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "LC_ALL": locale,
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == ascii("é語.bin"), done.stderr
