"""Realistic values for tests of what is shown."""

from __future__ import annotations

import functools
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from modelhub_sdk.domain.entities import (
    Alert,
    Alias,
    Attachment,
    AuditRecord,
    Comment,
    Evaluation,
    File,
    IngestReport,
    Listing,
    Model,
    ModelVersion,
    Output,
    Resolved,
    Verification,
)
from modelhub_sdk.domain.values import Frozen, normalise
from tests.support.hostile import CATALOGUE

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)


@functools.cache
def _catalogue() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = json.loads(CATALOGUE.read_text("utf-8"))
    return found


def cases(category: str) -> list[dict[str, Any]]:
    """Return the hostile inputs of a category."""
    return _catalogue()[category]


def digest(of: object) -> str:
    return "sha256:" + hashlib.sha256(repr(of).encode()).hexdigest()


def version(number: int = 1, model: str = "customer-churn", **changes: Any) -> ModelVersion:
    values: dict[str, Any] = {
        "uri": f"model://{model}/v{number}",
        "model": model,
        "number": number,
        "status": "pending",
        "files": (
            File("model.joblib", 1_843_112 + number, digest(number)),
            File("prep.json", 812, digest("p")),
        ),
        "digest": digest(("manifest", number)),
        "size": 1_843_924 + number,
        "metrics": normalise({"auc": 0.9 + number / 100, "log_loss": 0.4 - number / 100}),
        "params": normalise({"learning_rate": 0.05, "max_depth": 3 + number, "class_weight": None}),
        "tags": ("crm", "weekly"),
        "created_at": T0 + timedelta(days=number),
        "created_by": "sofia@example.org",
        "duration": 200.4,
        "run_id": "run-7f3a91",
        "inputs": (f"dataset://clicks/v{number + 6}",),
        "seq": number,
    }
    return ModelVersion(**(values | changes))


def everything(text: str) -> list[Any]:
    """One of each value that can be shown, with *text* wherever a user can put text."""
    shouting = version(
        2,
        status="approved",
        files=(File(text, 1, digest(1)),),
        metrics=Frozen({text: 0.5, "m": text}),
        params=Frozen({text: (text, Frozen({text: text}))}),
        fields=Frozen({text: text}),
        tags=(text,),
        note=text,
        description=text,
        reason=text,
        created_by=text,
        decided_at=T0,
        decided_by=text,
        inputs=(text,),
        run_id=text,
        evaluations=(Evaluation(T0, text, Frozen({text: 1.0}), data=text, note=text),),
        attachments=(Attachment(text, 1, digest(2), T0, text),),
        comments=(Comment(T0, text, text),),
    )
    model = Model(
        name="m", title=text, description=text, fields=Frozen({text: text}), tags=(text,), owner=text,
        projects=(text,), created_at=T0, created_by=text, modified_at=T0, seq=1, latest=2, last_number=2,
        counts=Frozen({"approved": 1, "pending": 1}), aliases=Frozen({"champion": Frozen({2: 100})}),
    )  # fmt: skip
    record = AuditRecord(T0, text, "version.approved", text, text, text, 7, Frozen({text: text}))
    return [
        shouting,
        model,
        record,
        Alias("m", "champion", Frozen({1: 40, 2: 60}), T0, text, text),
        Verification(False, (text,), 3, 4, "head"),
        IngestReport(
            (shouting,), (text,), (text,), (Alert(text, text, 3, 1),), (Output(text, 3, digest(3)),)
        ),
        Resolved("model://m/v2", text, (text,), shouting, T0),
        Listing([shouting, version(1)], total=9),
        Listing([model]),
        Listing([record]),
        Listing([File(text, 1, digest(1))]),
    ]
