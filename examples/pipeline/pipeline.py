"""Data → run → dataset version → run → model version → use: lineage that nobody logged by hand.

    python examples/pipeline/pipeline.py          the two steps as Python functions
    python examples/pipeline/pipeline.py --yaml   the same two scripts, unchanged, by valohai.yaml

Everything is kept in a new folder ``pipeline-…`` here. The picture of the lineage is in its ``lineage.svg``.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path

import prepare
import train
from sklearn.datasets import load_iris

import modelhub_sdk as hub

HERE = Path(__file__).parent.absolute()


def measure(path: Path) -> None:
    """Write the raw data: iris, with a few cells lost."""
    flowers = load_iris()
    chance = random.Random(7)
    with path.open("w") as file:
        file.write("sepal length,sepal width,petal length,petal width,kind\n")
        for row, kind in zip(flowers.data, flowers.target, strict=True):
            cells = ["" if chance.random() < 0.02 else str(cell) for cell in row]
            file.write(",".join([*cells, flowers.target_names[kind]]) + "\n")


def in_python(reg: hub.Registry) -> None:
    """Run both steps as functions of this process: whatever they read and write is seen."""
    with reg.start_run("prepare"):
        prepare.main(Path("measurements.csv"), Path("outputs"))
    with reg.start_run("train", params={"neighbours": 5}, outputs="trained") as run:
        data = run.input("flowers", "dataset://flowers/newest")
        accuracy = train.main(data / "flowers.csv", Path("trained"), run.params["neighbours"])
        run.log({"accuracy": accuracy})


def by_yaml(reg: hub.Registry) -> None:
    """Run the pipeline of valohai.yaml: each step is a process, with its inputs laid out as Valohai does."""
    reg.run_pipeline(
        HERE / "valohai.yaml",
        "flowers",
        inputs={"prepare.measurements": Path("measurements.csv").absolute().as_uri()},
    )


def main() -> None:
    """Make the data, run the pipeline, use the model, and draw where it comes from."""
    folder = Path(tempfile.mkdtemp(prefix=time.strftime("pipeline-%Y%m%d-%H%M%S-"), dir=".")).absolute()
    os.environ.setdefault("MODELHUB_CACHE_DIR", f"{folder}/.cache")
    os.chdir(folder)
    measure(Path("measurements.csv"))
    with hub.open(os.environ.get("MODELHUB_REGISTRY", f"sqlite:///{folder}/.models.db"), create=True) as reg:
        (by_yaml if "--yaml" in sys.argv[1:] else in_python)(reg)
        version = reg.approve("flower-classifier/v1", "Good enough for a garden")
        reg.resolve("model://flower-classifier/latest", into="inputs")
        print(f"\n{version.uri} comes from")
        print(reg.upstream(version))
        print("\nand went to")
        print(reg.downstream(version))
        record = reg.lineage(version)
        print(
            f"\nIts run used {len(record.environment.packages)} packages, {record.params}, and measured {record.metrics}."
        )
        record.graph.save("lineage.svg")
        print(f"The picture: {folder.relative_to(Path.cwd().parent)}/lineage.svg")


if __name__ == "__main__":
    main()
