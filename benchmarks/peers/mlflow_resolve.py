"""How much CPU a process takes that brings a registered model version here: with MLflow, and with this library.

Run it with the Python of an environment that has both::

    python -m venv peers && peers/bin/pip install mlflow . && peers/bin/python benchmarks/peers/mlflow_resolve.py

MLflow: a SQLite tracking store, ``models:/m/1``, copied into a fresh folder, as it does each time. Ours: SQLite,
``model://m/latest`` from a warm cache. Both are whole processes, their bytecode compiled; medians of seven.
"""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MLFLOW_SETUP = """
import sys, mlflow
mlflow.set_tracking_uri("sqlite:///" + sys.argv[1] + "/mlflow.db")
client = mlflow.MlflowClient()
experiment = mlflow.create_experiment("e", artifact_location=sys.argv[1] + "/artifacts")
run = client.create_run(experiment)
client.log_artifacts(run.info.run_id, sys.argv[1] + "/files", "model")
client.create_registered_model("m")
client.create_model_version("m", run.info.artifact_uri + "/model", run.info.run_id)
"""
MLFLOW = """
import sys, tempfile, mlflow
mlflow.set_tracking_uri("sqlite:///" + sys.argv[1] + "/mlflow.db")
mlflow.artifacts.download_artifacts("models:/m/1", dst_path=tempfile.mkdtemp(dir=sys.argv[1]))
"""
OURS_SETUP = """
import sys, modelhub_sdk as hub
with hub.open("sqlite:///" + sys.argv[1] + "/ours.db") as reg:
    reg.approve(reg.register("m", sys.argv[1] + "/files"))
    reg.resolve("model://m/latest")
"""
OURS = """
import sys, modelhub_sdk as hub
with hub.open("sqlite:///" + sys.argv[1] + "/ours.db") as reg:
    reg.resolve("model://m/latest")
"""


def cpu(code: str, folder: str) -> float:
    """Return the CPU milliseconds of a process that runs *code*."""
    environment = {**os.environ, "MODELHUB_CACHE_DIR": folder + "/cache"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, folder], env=environment, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        raise RuntimeError(f"the process failed with status {status}")
    return (usage.ru_utime + usage.ru_stime) * 1000


def main() -> None:
    """Print one line for each."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "files").mkdir()
        for n in range(3):
            Path(folder, "files", f"f{n}.bin").write_bytes(os.urandom(10_000))
        cpu(MLFLOW_SETUP, folder)
        cpu(OURS_SETUP, folder)
        figures: dict[str, list[float]] = {"mlflow": [], "modelhub-sdk": []}
        for turn in range(8):
            for name, code in (("mlflow", MLFLOW), ("modelhub-sdk", OURS)):
                took = cpu(code, folder)
                if turn:
                    figures[name].append(took)
    for name, values in figures.items():
        print(f"{name} {importlib.metadata.version(name)}: {statistics.median(values):.0f} ms of CPU")
    print(f"ratio: {statistics.median(figures['modelhub-sdk']) / statistics.median(figures['mlflow']):.2f}")


if __name__ == "__main__":
    main()
