"""From two trainings to an approved model in an inputs folder, in one go.

    python examples/quickstart.py

Without arguments everything is kept in a new folder ``quickstart-…`` here: delete it when you have seen
enough. The same script runs on a registry of your own when ``MODELHUB_REGISTRY`` names one (and, when
that is a new one on PostgreSQL, ``MODELHUB_ARTIFACTS`` says where files go).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import joblib
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, classification_report, f1_score, recall_score
from sklearn.svm import SVC

import modelhub_sdk as hub

MODEL = "quickstart-digits"
HELD_OUT = 450  # the last images are for judging, never for learning; predict.py uses the same


def train(gamma: float, outputs: Path) -> dict[str, float]:
    """Learn to read handwritten digits. A training script as it may stand today: it knows no registry.

    It writes what it made into a folder, and beside it a sidecar that says: these two files are a new
    version of that model. Returns its metrics.
    """
    images, labels = load_digits(return_X_y=True)
    model = SVC(gamma=gamma).fit(images[:-HELD_OUT], labels[:-HELD_OUT])
    truth, read = labels[-HELD_OUT:], model.predict(images[-HELD_OUT:])

    outputs.mkdir(parents=True)
    joblib.dump(model, outputs / "model.joblib")
    (outputs / "report.txt").write_text(classification_report(truth, read))
    version = {
        "model_uri": f"model://{MODEL}/",
        "model_version_tags": ["svm", "digits"],
        "model_release_note": f"Support vector machine with gamma = {gamma}",
    }
    with (outputs / "valohai.metadata.jsonl").open("w") as sidecar:
        for file in ("model.joblib", "report.txt"):
            metadata = {"valohai.model-versions": [version]}
            sidecar.write(json.dumps({"file": file, "metadata": metadata}) + "\n")

    return {
        "accuracy": accuracy_score(truth, read),
        "f1": f1_score(truth, read, average="macro"),
        "recall.worst digit": recall_score(truth, read, average=None).min(),
    }


def main() -> None:
    """Train, ingest, compare, decide, predict, look back."""
    folder = Path(tempfile.mkdtemp(prefix=time.strftime("quickstart-%Y%m%d-%H%M%S-"), dir="."))
    os.environ.setdefault("MODELHUB_REGISTRY", f"sqlite:///{folder.absolute()}/models.db")
    os.environ.setdefault("MODELHUB_CACHE_DIR", f"{folder.absolute()}/cache")  # gone with the folder

    with hub.open(create=True) as reg:
        title("A model registry in a minute")
        say(f"registry  {reg.url}", f"you are   {reg.user}", f"folder    {folder}/")

        title("1  Train twice")
        trained = {}
        for gamma in (0.01, 0.001):
            start = time.perf_counter()
            metrics = train(gamma, folder / f"outputs-gamma-{gamma}")
            trained[gamma] = metrics
            took = time.perf_counter() - start
            say(
                f"gamma = {gamma:<6}  {took:4.1f} s   reads {metrics['accuracy']:.1%} of unseen digits correctly"
            )
        say(
            "",
            "Each training wrote model.joblib, report.txt, and valohai.metadata.jsonl, which says:",
            f'these two files are a new version of "model://{MODEL}/".',
        )

        title("2  Ingest what they wrote")
        versions = []
        for gamma, metrics in trained.items():
            outputs = folder / f"outputs-gamma-{gamma}"
            report = reg.ingest(outputs, metrics=metrics, params={"gamma": gamma, "kernel": "rbf"})
            (version,) = report.versions
            versions.append(version)
            known = "  (ingested before: nothing changed)" if report.repeated else ""
            say(f"{outputs.name:<20} → {version.uri}  {version.status}{known}")

        title("3  Compare")
        say(str(reg.compare(*versions)))

        title("4  Decide")
        worse, better = sorted(versions, key=lambda version: version.metrics["accuracy"])
        reg.reject(worse, "It learned its examples by heart: gamma is too high")
        reg.approve(better, "Reads far more of the unseen digits correctly")
        for version in (reg.version(worse), reg.version(better)):
            say(f"v{version.number}  {version.status:<8}  by {version.decided_by}: {version.reason}")
        latest = reg.latest(MODEL)
        assert latest is not None  # it was approved above
        say("", f"model://{MODEL}/latest is now v{latest.number}.")

        title("5  Predict, in another process")
        predict(folder / "inputs", latest)

        title("6  Look back")
        for record in reversed(reg.audit(MODEL)):
            say(f"{record.at:%H:%M:%S}  {record.actor} {record.detail}")
        for use in reg.uses(latest)[-1:]:
            say(f"{use.at:%H:%M:%S}  {use.actor} used {use.uri}, asked for as {use.asked}")
        say("", str(reg.verify()))

    title("Next")
    say(
        f"look at its files:   ls -R {folder}/inputs",
        "look at the code:    examples/quickstart.py, examples/predict.py",
        "take the tour:       README.md, docs/tutorial.md",
        f"throw it all away:   rm -rf {folder}",
    )


def predict(inputs: Path, expected: hub.ModelVersion) -> None:
    """Run the inference script, which is told nothing but where to put its inputs, and check its answer."""
    script = Path(__file__).with_name("predict.py")
    say(f"$ python {os.path.relpath(script)} {inputs}")
    done = subprocess.run(
        [sys.executable, script, inputs],
        env=os.environ | {"PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    *lines, last = done.stdout.splitlines()
    say(textwrap.indent("\n".join(lines), "  "))
    answer = json.loads(last)
    if answer["model"] != expected.uri or answer["accuracy"] != expected.metrics["accuracy"]:
        sys.exit(f"The other process used {answer}, and {expected.uri} was approved.")
    say("", f"That is the approved {expected.uri}, and the accuracy it was registered with.")


def title(text: str) -> None:
    """Print the title of a section."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"\n{bold}{text}{plain}\n{'─' * len(text)}", flush=True)


def say(*texts: str) -> None:
    """Print texts, indented."""
    for text in texts:
        print(textwrap.indent(text, "  "), flush=True)


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without these letters shows question marks
    main()
