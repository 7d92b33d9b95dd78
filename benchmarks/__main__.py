"""Run all benchmarks, or those named on the command line, and print one table.

Each figure is the median of several runs, ours and the baseline's in turn, so that a machine whose
speed drifts slows both. CPU time where the disk is noisy, wall time where waiting is the point.
``--quick`` uses smaller sizes: for trying things out, not for quoting.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks import cases
from benchmarks.measuring import Result, quick


def main(arguments: list[str]) -> int:
    """Run what *arguments* name; return how many limits were missed."""
    if "--quick" in arguments:
        quick(True)
    wanted = [name for name in arguments if not name.startswith("-")]
    unknown = set(wanted) - set(cases.ALL)
    if unknown:
        print(f"No such benchmark: {', '.join(sorted(unknown))}. There are {', '.join(cases.ALL)}.")
        return 2
    print(Result.heading())
    missed = 0
    for name, case in cases.ALL.items():
        if wanted and name not in wanted:
            continue
        with tempfile.TemporaryDirectory(prefix="modelhub-bench-", dir=".") as folder:
            for result in case(Path(folder).absolute()):
                print(result, flush=True)
                missed += not result.good
    return missed


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
