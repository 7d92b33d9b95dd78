"""An inference script: it asks for the approved model, loads it, and reads digits that it has never seen.

    MODELHUB_REGISTRY=… python examples/predict.py inputs

It knows the model's name, and neither which version that is, nor who approved it, nor where files are kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import joblib
from sklearn.datasets import load_digits

import modelhub_sdk as hub

HELD_OUT = 450  # as in the training


def main(inputs: Path) -> None:
    """Resolve, load, predict; the last line that is printed is JSON."""
    found = hub.resolve("model://quickstart-digits/latest", into=inputs)
    print(f"{found.version.uri} is in {found.path}, verified: {', '.join(found.files)}")

    # A pickle runs code when it is loaded: load only what somebody you trust has approved.
    model = joblib.load(Path(found) / "model.joblib")

    images, labels = load_digits(return_X_y=True)
    images, labels = images[-HELD_OUT:], labels[-HELD_OUT:]
    read = model.predict(images)
    right = read == labels

    some = [*right.nonzero()[0][:3], *(~right).nonzero()[0][:1]]  # three good ones, and one that goes wrong
    print()
    for row in zip(*(drawn(images[n]) for n in some), strict=True):
        print("   ".join(row).rstrip())
    print("   ".join(said(read[n], labels[n]) for n in some).rstrip())
    print(f"\n{right.sum()} of {len(read)} digits read correctly.")
    print(json.dumps({"model": found.uri, "accuracy": float(right.mean())}))


def drawn(image: list[float]) -> list[str]:
    """Return an image of 8 × 8 pixels (0 to 16) as lines of text."""
    shades = [" ░▒▓█"[int(pixel) // 4] * 2 for pixel in image]
    return ["".join(shades[start : start + 8]) for start in range(0, 64, 8)]


def said(read: int, label: int) -> str:
    """Return what was read, as wide as an image."""
    return (f"a {read}" if read == label else f"a {read}? It is a {label}").center(16)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "inputs"))
