"""Step 2: learn to tell the flowers apart. Knows no registry either.

Prints its metrics as a line of JSON, and says in the sidecar that the file is a new version of a model.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path

import joblib
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier


def main(source: Path, outputs: Path, neighbours: int) -> float:
    """Write a classifier to *outputs*, as a version of the model ``flower-classifier``; return its accuracy."""
    with source.open(newline="") as file:
        _header, *rows = csv.reader(file)
    measured = [[float(cell) for cell in row[:-1]] for row in rows]
    kinds = [row[-1] for row in rows]
    model = KNeighborsClassifier(neighbours)
    accuracy = float(cross_val_score(model, measured, kinds, cv=5).mean())
    outputs.mkdir(parents=True, exist_ok=True)
    joblib.dump(model.fit(measured, kinds), outputs / "model.joblib")
    sidecar = {
        "valohai.model-versions": [
            {
                "model_uri": "model://flower-classifier/",
                "model_version_tags": ["knn"],
                "model_release_note": "",
            }
        ]
    }
    (outputs / "model.joblib.metadata.json").write_text(json.dumps(sidecar))
    print(json.dumps({"accuracy": round(accuracy, 4)}))
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--neighbours", type=int, default=5)
    inputs = Path(os.environ.get("VH_INPUTS_DIR", "/valohai/inputs"))
    main(
        next((inputs / "flowers").iterdir()),
        Path(os.environ.get("VH_OUTPUTS_DIR", "/valohai/outputs")),
        parser.parse_args().neighbours,
    )
