"""Step 1: from measurements of flowers to a table that can be learned from. Knows no registry.

Reads a CSV with the columns of Fisher's iris data and drops the rows with a missing value. Written for
Valohai's conventions: inputs and outputs are folders, and the sidecar beside the output says what it is.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path


def main(source: Path, outputs: Path) -> None:
    """Write the complete rows of *source* to *outputs*, as a version of the dataset ``flowers``."""
    with source.open(newline="") as file:
        header, *rows = csv.reader(file)
    complete = [row for row in rows if all(row)]
    outputs.mkdir(parents=True, exist_ok=True)
    with (outputs / "flowers.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *complete])
    version = {"uri": f"dataset://flowers/{len(complete)}-rows", "targeting_aliases": ["newest"]}
    sidecar = {"valohai.dataset-versions": [version], "source": source.name}
    (outputs / "flowers.csv.metadata.json").write_text(json.dumps(sidecar))
    print(json.dumps({"rows": len(rows), "dropped": len(rows) - len(complete)}))


if __name__ == "__main__":
    inputs = Path(os.environ.get("VH_INPUTS_DIR", "/valohai/inputs"))
    main(
        next((inputs / "measurements").iterdir()), Path(os.environ.get("VH_OUTPUTS_DIR", "/valohai/outputs"))
    )
