"""Many processes that do something at the same moment, and tell what happened."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

Tell = Callable[[Any], None]


class _Trouble(str):
    """A traceback, or another sentence on why a process failed."""


def together(
    work: Callable[..., None], crowd: list[tuple[Any, ...]], *, timeout: float = 150
) -> list[list[Any]]:
    """Run ``work(tell, ready, *arguments)`` in a fresh process for each of *crowd*; return what each told.

    Each calls ``ready()`` once, and is let go when all have. The processes come from a server that
    has imported the library and opened nothing, so nothing of this process's is shared.

    Raises:
        AssertionError: one failed, died, or did not end within *timeout* seconds.
    """
    context = _context()
    start = context.Barrier(len(crowd))
    told: list[list[Any]] = [[] for _ in crowd]
    troubles: list[str] = []
    pipes: dict[Connection, int] = {}
    children = []
    for who, arguments in enumerate(crowd):
        mine, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_run, args=(work, start, theirs, dict(os.environ), arguments))
        child.start()
        theirs.close()
        pipes[mine] = who
        children.append(child)
    end = time.monotonic() + timeout
    while pipes and time.monotonic() < end:
        for pipe in wait(list(pipes), timeout=1):
            assert isinstance(pipe, Connection)
            try:
                word = pipe.recv()
            except EOFError:
                del pipes[pipe]
                pipe.close()
                continue
            if isinstance(word, _Trouble):
                troubles.append(word)
            else:
                told[pipes[pipe]].append(word)
    for child in children:
        child.join(0 if pipes else 10)
        if child.is_alive():
            troubles.append(f"process {child.pid} did not end in {timeout} s")
            child.kill()
            child.join()
        elif child.exitcode:
            troubles.append(f"a process ended with {child.exitcode}")
    assert not troubles, "\n".join(troubles[:3])
    return told


def fresh(work: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Start ``work(pipe, *arguments)`` in a fresh process of that server; return it and the other end of the pipe.

    What it raises is its traceback on standard error, and its exit code 1.
    """
    context = _context()
    mine, theirs = context.Pipe()
    child = context.Process(target=_be_fresh, args=(work, theirs, dict(os.environ), arguments))
    child.start()
    theirs.close()
    return child, mine


def _be_fresh(
    work: Callable[..., None], pipe: Connection, environment: dict[str, str], arguments: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    work(pipe, *arguments)


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["modelhub_sdk.registry", "modelhub_sdk.ingest", "tests.support.crowd", *_drivers()]
    )
    return context


def _drivers() -> list[str]:
    return ["sqlalchemy", "fsspec", "cattrs", "psycopg", "s3fs", "aiobotocore.session"]


def _run(
    work: Callable[..., None],
    start: Any,
    pipe: Connection,
    environment: dict[str, str],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    try:
        work(pipe.send, lambda: start.wait(60), *arguments)
    except BaseException:
        pipe.send(_Trouble(traceback.format_exc()))
    finally:
        pipe.close()
