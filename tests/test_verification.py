"""`reg.verify()` says everything that is wrong, whatever is in its way."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import modelhub_sdk as hub
from modelhub_sdk import Registry
from tests.support.web import Quiet, serving


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def test_a_reference_that_cannot_be_read_is_one_problem(reg: Registry) -> None:
    """A server that refuses is told as what is wrong with that file; the others are looked at all the same."""

    class Moody(Quiet):
        refuses = False

        def answer(self) -> None:
            self.send_response(403 if Moody.refuses else 200)
            self.send_header("Content-Length", "0" if Moody.refuses else "7")
            self.end_headers()
            self.wfile.write(b"" if Moody.refuses else b"weights")

    with serving(Moody) as url:
        reg.configure(external=[url])
        reg.register("far", f"{url}/m.bin", copy=False)
        reg.register("near", {"m.bin": b"stored"})
        assert reg.verify().ok
        Moody.refuses = True
        reg._core.artifacts().delete(digest(b"stored"))
        problems = reg.verify().problems
    assert len(problems) == 2
    assert "far/v1" in problems[0]
    assert "403" in problems[0]
    assert "near/v1" in problems[1]
    assert reg.stats().largest == ()  # what is kept by reference takes no space here


def test_an_output_that_is_kept_is_read_whatever_was_purged(reg: Registry, tmp_path: Path) -> None:
    """Bytes that a purged version had too are verified when an output of its own keeps them."""
    reg.register("old", {"a.csv": b"id,amount\n"})
    reg.purge("old/v1", "not needed any more")
    tmp_path.joinpath("out").mkdir()
    tmp_path.joinpath("out", "b.csv").write_bytes(b"id,amount\n")
    tmp_path.joinpath("out", "b.csv.metadata.json").write_text(json.dumps({"valohai.alias": "today"}))
    reg.ingest(tmp_path / "out")
    assert reg.verify().ok
    reg._core.artifacts().delete(digest(b"id,amount\n"))
    assert ["datum" in problem for problem in reg.verify().problems] == [True]
    assert reg.stats().missing == 1


def test_a_purged_file_is_not_missed(reg: Registry) -> None:
    """What was given up, as a whole or in part, is no problem."""
    reg.register("churn", {"a": b"a", "b": b"b"})
    reg.register("churn", {"c": b"c"})
    reg.purge("churn/v1", "private", files=["a"])
    reg.purge("churn/v2", "private")
    assert reg.verify().ok
    assert isinstance(reg.version("churn/v1"), hub.ModelVersion)
