"""What is measured, against what, and the limit."""

from __future__ import annotations

import hashlib
import http.client
import os
import queue
import shutil
import sqlite3
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measuring import Result, alternate, child, cpu, peak, quick, wall
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.formats import codec
from modelhub_sdk.stores import files

METRICS = {f"metric{i}": i / 7 for i in range(10)}
PARAMS = {f"param{i}": i for i in range(10)}
FILES = {f"file{i}.bin": bytes([i]) * 1000 for i in range(3)}


def imports(folder: Path) -> Iterator[Result]:
    """Import the package."""
    runs = 5 if quick() else 15
    ours, base = alternate(lambda: child("import modelhub_sdk")[1], lambda: child("pass")[1], runs)
    yield Result("import modelhub_sdk, wall", ours, base, "a bare interpreter", 60, relation="difference")


def first_version(folder: Path) -> Iterator[Result]:
    """Open a fresh SQLite registry and register a first version, as a whole process."""
    os.environ["MODELHUB_CACHE_DIR"] = str(folder / "cache")
    count = [0]

    def ours() -> float:
        count[0] += 1
        code = (
            "import sys, modelhub_sdk as hub\n"
            "reg = hub.open('sqlite:///' + sys.argv[1])\n"
            "reg.register('m', {'a.bin': b'x' * 1000}, metrics={'auc': 0.9}, params={'lr': 0.1})\n"
            "reg.close()"
        )
        return child(code, str(folder / f"first{count[0]}.db"))[0]

    mine, base = alternate(ours, lambda: child("import fsspec, cattrs")[0], 5 if quick() else 15)
    yield Result(
        "open a fresh registry, register, CPU",
        mine,
        base,
        "a process that imports fsspec and cattrs",
        100,
        relation="difference",
    )


def registration(folder: Path) -> Iterator[Result]:
    """One durable registration against the bare transaction that writes the same rows."""
    import modelhub_sdk as hub

    reg = hub.open(f"sqlite:///{folder}/r.db", cache_dir=folder / "cache")
    for _ in range(2):
        reg.register("m", FILES, metrics=METRICS, params=PARAMS)
    bare = _Bare(folder / "r.db", folder / "bare.db")
    count = 20 if quick() else 100

    def ours() -> float:
        return (
            cpu(lambda: [reg.register("m", FILES, metrics=METRICS, params=PARAMS) for _ in range(count)])
            / count
        )

    mine, base = alternate(ours, lambda: cpu(lambda: [bare.write() for _ in range(count)]) / count, 7)
    yield Result(
        "register (10 metrics, 10 params, 3 files), CPU", mine, base, "sqlite3 writing the same rows", 3
    )
    reg.approve("m/v1")

    def latest() -> float:
        return wall(lambda: [reg.latest("m") for _ in range(200)]) / 200

    mine, _ = alternate(latest, latest, 7)
    yield Result("latest, warm process, wall", mine, 0, "", 0.5, relation="absolute")
    reg.close()


class _Bare:
    """Writes the rows of a registration with nothing but the sqlite3 module, as durably."""

    def __init__(self, source: Path, target: Path) -> None:
        read = sqlite3.connect(source)
        self._conn = sqlite3.connect(target, isolation_level=None)
        self._conn.execute("PRAGMA journal_mode = WAL")
        self._conn.execute("PRAGMA synchronous = FULL")
        self._rows: dict[str, list[tuple[Any, ...]]] = {}
        self.n = 100
        (seq,) = read.execute("SELECT max(seq) FROM modelhub_journal").fetchone()
        for (sql,) in read.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall():
            self._conn.execute(sql)
        for (table,) in read.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            names = [row[1] for row in read.execute(f"PRAGMA table_info({table})")]
            self._conn.execute(f"DELETE FROM {table}")
            if table.endswith("_head"):
                self._head = table
                self._conn.executemany(
                    f"INSERT INTO {table} VALUES ({','.join('?' * len(names))})",
                    read.execute(f"SELECT * FROM {table}"),
                )
                continue
            column = next((name for name in ("seq", "since", "number") if name in names), None)
            if column is not None:
                value = seq if column != "number" else 2
                rows = read.execute(f"SELECT * FROM {table} WHERE {column} = ?", (value,)).fetchall()
            else:
                rows = (
                    read.execute(f"SELECT * FROM {table} LIMIT 2").fetchall()
                    if table.endswith("_text")
                    else []
                )
            if rows:
                self._rows[table] = rows
                self._names = {**getattr(self, "_names", {}), table: names}

    def _changed(self, table: str) -> list[tuple[Any, ...]]:
        names = self._names[table]
        found = []
        for row in self._rows[table]:
            values = dict(zip(names, row, strict=True))
            for name in ("seq", "number", "since"):
                if name in values:
                    values[name] = self.n
            if "seal" in values:
                values["seal"] = f"{values['seal'][:-12]}{self.n:012d}"
            found.append(tuple(values.values()))
        return found

    def write(self) -> None:
        """One transaction."""
        self.n += 1
        cursor = self._conn.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        for table, rows in self._rows.items():
            cursor.executemany(
                f"INSERT INTO {table} VALUES ({','.join('?' * len(rows[0]))})", self._changed(table)
            )
        cursor.execute(f"UPDATE {self._head} SET seq = ?", (self.n,))
        cursor.execute("COMMIT")


def refold(folder: Path) -> Iterator[Result]:
    """Fold the whole journal again, against a bare insert of the rows that come out."""
    import modelhub_sdk as hub
    from modelhub_sdk.index import schema

    reg = hub.open(f"sqlite:///{folder}/r.db", cache_dir=folder / "cache")
    count = 200 if quick() else 2000
    for i in range(count):
        reg.register(f"m{i % 20}", FILES, metrics=METRICS, params=PARAMS)
    tables = {}
    with sqlite3.connect(f"{folder}/r.db") as conn:
        for table in schema.TABLES:
            tables[table.full_name] = conn.execute(f"SELECT * FROM {table.full_name}").fetchall()

    def bare() -> None:
        path = folder / "bare.db"
        path.unlink(missing_ok=True)
        conn = sqlite3.connect(path, isolation_level=None)
        conn.execute("PRAGMA journal_mode = WAL")
        for statement in schema.ddl("sqlite"):
            conn.execute(statement)
        conn.execute("BEGIN")
        for name, rows in tables.items():
            if rows:
                conn.executemany(f"INSERT INTO {name} VALUES ({','.join('?' * len(rows[0]))})", rows)
        conn.execute("COMMIT")
        conn.close()

    mine, base = alternate(lambda: cpu(reg.rebuild_index), lambda: cpu(bare), 3)
    yield Result(f"refold of {count:,} registrations, CPU", mine, base, "sqlite3 inserting the same rows", 2)
    reg.close()


def large(folder: Path) -> Iterator[Result]:
    """Register a large file, against the slower of hashing it and copying it with fsync."""
    import modelhub_sdk as hub

    size = (64 if quick() else 1024) << 20
    source = folder / "large.bin"
    with open(source, "wb") as file:
        block = os.urandom(1 << 20)
        file.writelines(block[:-8] + i.to_bytes(8, "big") for i in range(size >> 20))
    count = [0]

    def ours() -> float:
        count[0] += 1
        reg = hub.open(f"sqlite:///{folder}/large{count[0]}.db", cache_dir=folder / "cache")
        took = wall(lambda: reg.register("m", source))
        reg.close()
        shutil.rmtree(f"{folder}/large{count[0]}.db.artifacts")
        return took

    def hashing() -> float:
        def work() -> None:
            digest = hashlib.sha256()
            with open(source, "rb", buffering=0) as file:
                while block := file.read(1 << 20):
                    digest.update(block)

        return wall(work)

    def copying() -> float:
        target = folder / "copy.bin"

        def work() -> None:
            with open(source, "rb", buffering=0) as file, open(target, "wb", buffering=0) as out:
                while block := file.read(1 << 20):
                    out.write(block)
                os.fsync(out.fileno())

        took = wall(work)
        target.unlink()
        return took

    mine, base = alternate(ours, lambda: max(hashing(), copying()), 3)
    yield Result(
        f"register a file of {size >> 20} MB, wall", mine, base, "the slower of hashing and copy+fsync", 1.2
    )
    code = "import sys, modelhub_sdk as hub\nhub.open('sqlite:///' + sys.argv[1]).register('m', sys.argv[2])"
    small = folder / "small.bin"
    small.write_bytes(b"x" * (1 << 20))
    big_peak = peak(code, str(folder / "peak1.db"), str(source))
    small_peak = peak(code, str(folder / "peak2.db"), str(small))
    yield Result(
        f"peak memory, {size >> 20} MB file",
        big_peak,
        small_peak,
        "the same with a file of 1 MB",
        16,
        "MB",
        "difference",
    )


def run_cost(folder: Path) -> Iterator[Result]:
    """A whole run around code that does nothing; and the work of code that is watched, and logs."""
    import modelhub_sdk as hub

    with hub.open(f"sqlite:///{folder}/run.db", cache_dir=folder / "cache") as reg:

        def empty() -> None:
            with reg.start_run("bench", outputs=None):
                pass

        empty()
        runs = 5 if quick() else 15
        ours, base = alternate(lambda: wall(empty), lambda: wall(lambda: None), runs)
        yield Result("a run around nothing, wall", ours, base, "nothing", 200, relation="difference")

        place = folder / "small"
        place.write_bytes(b"x")

        def reading() -> None:
            for _ in range(10_000):
                with place.open("rb", buffering=0):
                    pass

        with reg.start_run("bench", outputs=None, roots=[folder]) as run:
            watched = [wall(reading) for _ in range(runs)]
            logged = wall(lambda: [run.log({"loss": 0.5}, step=n) for n in range(10_000)])
        plain = [wall(reading) for _ in range(runs)]
        yield Result("10,000 opens of a file, watched", min(watched), min(plain), "unwatched", 1.5)
        yield Result("one run.log", logged / 10_000, 0, "", 0.1, relation="absolute")


def _flushed_copy(source: Path, target: Path) -> None:
    """Copy a file in pieces, hash it beside that, and sync it: the least that a verified, durable copy costs."""
    hasher = hashlib.sha256()
    pieces: queue.Queue[bytes | None] = queue.Queue(4)

    def hash_all() -> None:
        while (piece := pieces.get()) is not None:
            hasher.update(piece)

    thread = threading.Thread(target=hash_all)
    thread.start()
    with open(source, "rb", buffering=0) as given, open(target, "wb", buffering=0) as made:
        while piece := given.read(1 << 20):
            pieces.put(piece)
            made.write(piece)
        pieces.put(None)
        os.fsync(made.fileno())
    thread.join()


def resolution(folder: Path) -> Iterator[Result]:
    """Resolve a large file and many small ones, from a warm cache, into a folder, and from the store."""
    import modelhub_sdk as hub

    size = (64 if quick() else 1024) << 20
    count = 1000 if quick() else 10_000
    piece = os.urandom(1 << 20)
    with open(folder / "big.bin", "wb") as file:
        file.writelines(piece for _ in range(size >> 20))
    for n in range(count):
        at = folder / "many" / f"d{n // 100}"
        at.mkdir(parents=True, exist_ok=True)
        (at / f"{n}.bin").write_bytes(b"%d" % n * 100)
    reg = hub.open(f"sqlite:///{folder}/r.db", cache_dir=folder / "cache")
    reg.register("big", str(folder / "big.bin"))
    reg.register("many", str(folder / "many"))
    for name, label, limit, limit_into in (
        ("big", f"1 file of {size >> 20} MB", 5, 5),
        ("many", f"{count} small files", 50, 500),
    ):
        reg.resolve(f"{name}/v1")
        mine = statistics.median(wall(lambda name=name: reg.resolve(f"{name}/v1")) for _ in range(9))
        yield Result(f"warm resolve, {label}", mine, 0, "", limit, relation="absolute")
        turn = iter(range(1000))

        def linked(name: str = name, turn: Iterator[int] = turn) -> float:
            target = folder / f"hard{name}{next(turn)}"
            return wall(lambda: reg.resolve(f"{name}/v1", into=target, link="hard"))

        mine = statistics.median(linked() for _ in range(3))
        yield Result(f"warm, into= by hard link, {label}", mine, 0, "", limit_into, relation="absolute")

        def ours(name: str = name, turn: Iterator[int] = turn) -> float:
            target = folder / f"copy{name}{next(turn)}"
            took = wall(lambda: reg.resolve(f"{name}/v1", into=target, link="copy"))
            shutil.rmtree(target)
            return took

        def base(name: str = name, turn: Iterator[int] = turn) -> float:
            target = folder / f"cp{name}{next(turn)}"
            source = reg.resolve(f"{name}/v1").path
            took = wall(
                lambda: subprocess.run(f"cp -r {source} {target} && sync -f {target}", shell=True, check=True)
            )
            subprocess.run(["chmod", "-R", "u+w", str(target)], check=True)
            shutil.rmtree(target)
            return took

        mine, theirs = alternate(ours, base, 3)
        yield Result(f"warm, into= by copy, {label}", mine, theirs, "cp -r, then sync -f", 1.1)
    (blob,) = [
        path
        for path in (folder / "r.db.artifacts").rglob("*")
        if path.is_file() and path.stat().st_size == size
    ]

    def cold() -> float:
        reg._core.cache().clear()
        return wall(lambda: reg.resolve("big/v1"))

    def flushed() -> float:
        took = wall(lambda: _flushed_copy(blob, folder / "flushed"))
        os.unlink(folder / "flushed")
        return took

    mine, theirs = alternate(cold, flushed, 3)
    yield Result(
        "cold resolve from a local store", mine, theirs, "a copy with sha256 beside it, and fsync", 1.15
    )
    reg.close()


def whole_process(folder: Path) -> Iterator[Result]:
    """A process that imports, opens and resolves a warm `latest`."""
    import modelhub_sdk as hub

    os.environ["MODELHUB_CACHE_DIR"] = str(folder / "cache")
    with hub.open(f"sqlite:///{folder}/r.db") as reg:
        reg.approve(reg.register("m", FILES))
        reg.resolve("model://m/latest")
    code = (
        "import sys, modelhub_sdk as hub\n"
        "with hub.open('sqlite:///' + sys.argv[1]) as reg: reg.resolve('model://m/latest')"
    )
    mine, base = alternate(
        lambda: child(code, f"{folder}/r.db")[0],
        lambda: child("import fsspec, cattrs")[0],
        5 if quick() else 15,
    )
    yield Result(
        "import, open, resolve a warm latest, CPU", mine, base, "a process that imports fsspec and cattrs", 100,
        relation="difference",
    )  # fmt: skip


_FRESH = """
import sys, time
from modelhub_sdk.stores import files

def slow(action):
    def later(*args):
        time.sleep(0.03)
        return action(*args)
    return later

for name in ("get", "names", "create", "replace", "delete", "modified"):
    setattr(files.Disk, name, slow(getattr(files.Disk, name)))
made = files.FileStore.__init__
files.FileStore.__init__ = lambda self, url, medium, *, parallel, read_only: made(
    self, url, medium, parallel=32, read_only=read_only
)
import modelhub_sdk as hub
begun = time.perf_counter()
reg = hub.open(sys.argv[1], cache_dir=sys.argv[2])
found = reg.resolve("model://m7/latest")
print((time.perf_counter() - begun) * 1000)
assert found.version.number == int(sys.argv[3]), found
reg.close()
"""


def fresh_machine(folder: Path) -> Iterator[Result]:
    """Open a long journal of files with an empty cache and resolve, when each request takes 30 ms.

    A folder stands for the object store, slowed down, read with as many requests at a time as there. It ends
    just before the next checkpoint would be due. The baseline is the first client, for which nothing is derived.
    """
    import modelhub_sdk as hub

    entries = 5_999 if quick() else 100_999
    models = 100
    with hub.open(folder / "r", cache_dir=folder / "cache") as reg:
        document = reg.register("m0", {"model.bin": b"weights"})
        last = next(iter(reg._core.place.store.read(1)))
    sealer = ev.Sealer(os.urandom)
    chain, seq = last.chain, last.seq
    numbers = {0: 1}
    while seq < entries:
        seq += 1
        which = seq % models
        numbers[which] = numbers.get(which, 0) + 1
        events: list[ev.Event] = [ev.ModelCreated(model=f"m{which}")] if numbers[which] == 1 else []
        name, number = f"m{which}", numbers[which]
        events += [
            ev.VersionRegistered(
                model=name, number=number, manifest=document.digest, size=document.size, files=document.files,
                metrics=Frozen({"auc": 0.5 + seq % 100 / 1000, "loss": 1 / seq}), params=Frozen({"lr": 0.1, "seed": seq}),
                texts=Frozen({"note": sealer(f"version {number} of {name}")}),
            ),
            ev.VersionApproved(model=name, number=number),
        ]  # fmt: skip
        entry = ev.Entry(
            seq, f"{seq:032x}", "model:" + name, datetime.now(UTC), sealer("ann"), Frozen({"sdk": "bench"}), tuple(events)
        )  # fmt: skip
        record = codec.encode(entry, sealer.texts, chain)
        sealer.texts.clear()
        chain = record.chain
        path = folder / "r" / files._entry_name(seq)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(files._printed(record))

    def answer(cache: str) -> float:
        arguments = [sys.executable, "-c", _FRESH, folder / "r", folder / cache, str(numbers[7])]
        return float(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)

    first = answer("first")
    times = [answer(f"cold{n}") for n in range(3)]
    yield Result(
        f"fresh machine, {entries:,} entries, 30 ms a request", statistics.median(times), first,
        f"the first client, with nothing derived ({first:,.0f} ms)", 3000, relation="absolute",
    )  # fmt: skip


_RATE = 100e6  # bytes a second: a gigabit


@contextmanager
def _wire(folder: Path, latency: float) -> Iterator[int]:
    """Serve *folder* as a bucket at a gigabit a second; yield the port."""
    code = [sys.executable, "-m", "benchmarks.wire", str(folder), str(_RATE), str(latency)]
    root = Path(__file__).parent.parent
    server = subprocess.Popen(code, stdout=subprocess.PIPE, text=True, cwd=root)
    assert server.stdout is not None
    try:
        yield int(server.stdout.readline())
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def _raw(port: int, keys: list[tuple[str, int]]) -> float:
    """Return the milliseconds of bare parallel GETs of *keys*, thrown away: what the wire gives."""
    jobs: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    for key, size in keys:
        step = 4 << 20
        for start in range(0, max(size, 1), step):
            jobs.put((key, f"bytes={start}-{min(start + step, size) - 1}"))

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while not jobs.empty():
            with suppress(queue.Empty):
                key, wanted = jobs.get_nowait()
                connection.request("GET", f"/bucket/{key}", headers={"Range": wanted})
                connection.getresponse().read()

    threads = [threading.Thread(target=work) for _ in range(8)]

    def all_of_it() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return wall(all_of_it)


_COLD = """
import sys, time
import modelhub_sdk as hub
from modelhub_sdk.blobs.store import BlobStore
reg = hub.open("sqlite:///" + sys.argv[1], cache_dir=sys.argv[2])
reg.version("m/v1")
reg._core.blobs = BlobStore("s3://bucket", registry_id=reg._core.registry_id)
reg._core.blobs.has("sha256:" + "0" * 64)  # connected, as the driver below is
begun = time.perf_counter()
reg.resolve("m/v1")
print((time.perf_counter() - begun) * 1000)
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""
_S3FS = """
import sys, time, s3fs
fs = s3fs.S3FileSystem()
keys = open(sys.argv[1]).read().split()
fs.exists("bucket/none")
begun = time.perf_counter()
fs.get(["bucket/" + key for key in keys], [sys.argv[2] + "/" + key.replace("/", "_") for key in keys])
print((time.perf_counter() - begun) * 1000)
"""


def cold_s3(folder: Path) -> Iterator[Result]:
    """Resolve with an empty cache from an object store behind a gigabit wire: its speed, s3fs.get, and memory."""
    import modelhub_sdk as hub

    os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    small = 200 if quick() else 2_000
    shapes: dict[str, tuple[dict[str, Any], float]] = {
        "1 file of 512 MB": ({"m.bin": os.urandom((64 if quick() else 512) << 20)}, 0.02),
        f"{small:,} files of 20 kB": ({f"{n}": os.urandom(20_000) for n in range(small)}, 0.02),
        "8 files of 128 MB": ({f"{n}": os.urandom((16 if quick() else 128) << 20) for n in range(8)}, 0.02),
    }
    for name, (content, latency) in shapes.items():
        place = folder / name.replace(" ", "-")
        with hub.open(f"sqlite:///{place}/r.db", artifacts=place / "a", cache_dir=place / "none") as reg:
            made = reg.register("m", content)
            keys = [
                (f"{reg._core.registry_id}/sha256/{file.digest[7:9]}/{file.digest[9:]}", file.size)
                for file in made.files
            ]
        content.clear()
        (place / "keys").write_text("\n".join(key for key, _ in keys))
        with _wire(place / "a", latency) as port:
            os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
            ours, theirs, bare, memory = [], [], [], []
            for n in range(1 if quick() else 3):
                bare.append(_raw(port, keys))
                out = _output(_COLD, f"{place}/r.db", f"{place}/cache{n}")
                ours.append(float(out[0]))
                memory.append(int(out[1]) / 1024)
                (place / f"got{n}").mkdir()
                theirs.append(float(_output(_S3FS, f"{place}/keys", f"{place}/got{n}")[0]))
                shutil.rmtree(place / f"cache{n}")
                shutil.rmtree(place / f"got{n}")
        middle = statistics.median
        yield Result(f"cold from S3, {name}", middle(ours), middle(bare), "bare parallel GETs", 1 / 0.9)
        yield Result("  … against s3fs.get", middle(ours), middle(theirs), "s3fs.get, nothing verified", 1.0)
        yield Result("  … peak memory", max(memory), 0, "the whole process", 150, "MB", "absolute")
        shutil.rmtree(place)


def _output(code: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.split()


ALL: dict[str, Callable[[Path], Iterator[Result]]] = {
    "imports": imports,
    "first_version": first_version,
    "registration": registration,
    "refold": refold,
    "large": large,
    "run": run_cost,
    "resolution": resolution,
    "process": whole_process,
    "fresh": fresh_machine,
    "s3": cold_s3,
}
