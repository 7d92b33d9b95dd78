"""Plant small bugs in the library, one at a time, and count how many the tests find.

``python -m tests.support.mutants --count 40 --seed 1`` flips operators, comparisons and constants that a seed
chooses, each in a copy of this checkout, and runs the tests of the changed module's area there. With
``THOROUGH_TESTS=1`` they run at full size. A mutant that lives is printed, so that one can see whether it matters.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path("src", "modelhub_sdk")
COPIED = ("src", "tests", "docs", "examples", "conftest.py", "pyproject.toml", "README.md", "CHANGELOG.md")
VERBS = "tests/test_*.py"
AREAS = {
    "domain": ["tests/domain", VERBS, "tests/testing/test_machine.py"],
    "formats": ["tests/formats", "tests/test_ingest.py", "tests/stores", "tests/test_versions.py"],
    "views": ["tests/views"],
    "blobs": ["tests/blobs", "tests/test_resolve.py", "tests/laws/test_resolve_faults.py"],
    "stores": ["tests/stores", VERBS, "tests/laws"],
    "index": [
        VERBS,
        "tests/domain/test_query.py",
        "tests/testing/test_machine.py",
        "tests/laws/test_restored.py",
    ],
    "run": ["tests/run"],
}
ELSEWHERE = [VERBS, "tests/laws", "tests/testing/test_machine.py"]
LEFT_OUT = ("testing", "run/hook")  # a kit of tests, and what children read in whatever Python they run

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip


def flipped(node: ast.AST) -> bool:
    """Change *node* in place; return whether there was something to change."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not _is_text(node):
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        node.op = ast.UAdd()  # `not x` becomes `bool(x)`, in `_written`
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        node.value += 1
    else:
        return False
    return True


def _is_text(node: ast.BinOp) -> bool:
    return any(isinstance(side, (ast.JoinedStr, ast.Constant)) for side in (node.left, node.right))


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs: no annotations, no type aliases, no slots."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.JoinedStr):  # in which Python 3.11 places nodes wrongly
            continue
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield from (node.value, *nodes(node.value))
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            parts: list[ast.AST] = [*node.body, *node.args.defaults, *filter(None, node.args.kw_defaults)]
            for part in parts:
                yield from (part, *nodes(part))
            continue
        yield node
        yield from nodes(node)


def places() -> list[tuple[Path, int]]:
    """Return everything that can be flipped: a module, and which of its nodes."""
    found = []
    for path in sorted((ROOT / LIBRARY).rglob("*.py")):
        name = path.relative_to(ROOT / LIBRARY).as_posix()
        if not name.startswith(LEFT_OUT):
            tree = ast.parse(path.read_text("utf-8"))
            found += [(path, n) for n, node in enumerate(nodes(tree)) if flipped(node)]
    return found


def mutant(path: Path, number: int) -> tuple[bytes, str]:
    """Return the module's text with one node flipped, all else as it was, and what was done."""
    source = path.read_bytes()
    node: Any = list(nodes(ast.parse(source)))[number]
    before = ast.unparse(node)
    flipped(node)
    after = _written(node)
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
    text = source[:begin] + after.encode() + source[end:]
    ast.parse(text)
    return text, f"{path.relative_to(ROOT)}:{node.lineno}: {before[:60]} -> {after[:60]}"


def _written(node: ast.AST) -> str:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd):
        return f"bool({ast.unparse(node.operand)})"
    return ast.unparse(node) if isinstance(node, ast.Constant) else f"({ast.unparse(node)})"


def area(path: Path, copy: Path) -> list[str]:
    """Return the tests of a module, its own first."""
    parts = path.relative_to(ROOT / LIBRARY).parts
    patterns = AREAS.get(parts[0], ELSEWHERE)
    own = f"tests/test_{path.stem}.py"
    found = [own] if (copy / own).exists() else []
    for pattern in patterns:
        found += sorted(str(one.relative_to(copy)) for one in copy.glob(pattern))
    return list(dict.fromkeys(found))


def fate(copy: Path, tests: list[str], timeout: float) -> str:
    """Run *tests* in *copy* until one fails; say what became of the mutant: "no end" may be a loop, or a busy machine."""
    variables = os.environ | {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "2", "--timeout", "120", *tests]
    try:
        done = subprocess.run(
            command, cwd=copy, env=variables, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return "no end"
    return "caught" if done.returncode else "LIVES"


def main() -> None:
    """Try so many mutants, and print what became of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="modules whose path contains this")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one mutant")
    wanted = parser.parse_args()
    chosen = [place for place in places() if wanted.only in place[0].as_posix()]
    chosen = random.Random(wanted.seed).sample(chosen, min(wanted.count, len(chosen)))
    ends: list[str] = []
    with tempfile.TemporaryDirectory(prefix="modelhub-mutants-") as folder:
        copy = Path(folder, "copy")
        copy.mkdir()
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, copy / name)
        for number, (path, node) in enumerate(chosen, 1):
            text, what = mutant(path, node)
            target = copy / path.relative_to(ROOT)
            target.write_bytes(text)
            begun = time.monotonic()
            end = fate(copy, area(path, copy), wanted.timeout)
            shutil.copy(path, target)
            ends.append(end)
            print(f"{number:4} {end:6} {time.monotonic() - begun:5.0f} s  {what}", flush=True)
    print(", ".join(f"{count} {end}" for end, count in Counter(ends).items()), f"of {len(chosen)}")


if __name__ == "__main__":
    main()
