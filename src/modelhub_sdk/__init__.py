"""An embeddable registry for machine-learning models: versions, approval, lineage, verified files.

>>> import modelhub_sdk as hub
>>> reg = hub.open("memory://")
>>> v1 = reg.register("customer-churn", {"model.pkl": b"weights"}, metrics={"auc": 0.91})
>>> reg.approve(v1, "recall +5 %").status
'approved'
>>> str(reg.latest("customer-churn"))
'model://customer-churn/v1'

`open` is where to start; `Registry` has every verb. Heavy parts are imported when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "open": "hub",
    "resolve": "hub",
    "start_run": "hub",
    "use": "hub",
    "Registry": "registry",
    "RegistryView": "reads",
    "Alert": "domain.entities",
    "Alias": "domain.entities",
    "AuditRecord": "domain.entities",
    "Comparison": "domain.compare",
    "ForgottenUser": "domain.entities",
    "GarbageReport": "domain.entities",
    "RepairItem": "domain.entities",
    "RepairReport": "domain.entities",
    "CopyReport": "domain.entities",
    "IngestReport": "domain.entities",
    "Listing": "domain.entities",
    "Mention": "domain.entities",
    "Model": "domain.entities",
    "ModelVersion": "domain.entities",
    "Resolved": "domain.entities",
    "Stats": "domain.entities",
    "Use": "domain.entities",
    "Verification": "domain.entities",
    "Run": "run.session",
    "RunRecord": "domain.lineage",
    "LineageRecord": "domain.lineage",
    "LineageGraph": "domain.lineage",
    "Datum": "domain.entities",
    "DatasetVersion": "domain.entities",
    "Dataset": "domain.entities",
    "Busy": "errors",
    "ChildFailed": "errors",
    "ClockSkew": "errors",
    "Conflict": "errors",
    "CredentialsRefused": "errors",
    "DigestMismatch": "errors",
    "InvalidDocument": "errors",
    "InvalidName": "errors",
    "InvalidQuery": "errors",
    "InvalidURI": "errors",
    "JournalTooNew": "errors",
    "KeyReused": "errors",
    "MissingExtra": "errors",
    "ModelHubError": "errors",
    "NoApprovedVersion": "errors",
    "NotAllowed": "errors",
    "NotApproved": "errors",
    "NotFound": "errors",
    "Offline": "errors",
    "Purged": "errors",
    "StoreUnavailable": "errors",
    "Unmet": "errors",
    "UnsafeStore": "errors",
}

__all__ = [
    "Alert",
    "Alias",
    "AuditRecord",
    "Busy",
    "ChildFailed",
    "ClockSkew",
    "Comparison",
    "Conflict",
    "CopyReport",
    "CredentialsRefused",
    "Dataset",
    "DatasetVersion",
    "Datum",
    "DigestMismatch",
    "ForgottenUser",
    "GarbageReport",
    "IngestReport",
    "InvalidDocument",
    "InvalidName",
    "InvalidQuery",
    "InvalidURI",
    "JournalTooNew",
    "KeyReused",
    "LineageGraph",
    "LineageRecord",
    "Listing",
    "Mention",
    "MissingExtra",
    "Model",
    "ModelHubError",
    "ModelVersion",
    "NoApprovedVersion",
    "NotAllowed",
    "NotApproved",
    "NotFound",
    "Offline",
    "Purged",
    "Registry",
    "RegistryView",
    "RepairItem",
    "RepairReport",
    "Resolved",
    "Run",
    "RunRecord",
    "Stats",
    "StoreUnavailable",
    "Unmet",
    "UnsafeStore",
    "Use",
    "Verification",
    "cache",
    "open",
    "resolve",
    "start_run",
    "use",
]

if TYPE_CHECKING:
    from modelhub_sdk import cache
    from modelhub_sdk.domain.compare import Comparison
    from modelhub_sdk.domain.entities import (
        Alert,
        Alias,
        AuditRecord,
        CopyReport,
        Dataset,
        DatasetVersion,
        Datum,
        ForgottenUser,
        GarbageReport,
        IngestReport,
        Listing,
        Mention,
        Model,
        ModelVersion,
        RepairItem,
        RepairReport,
        Resolved,
        Stats,
        Use,
        Verification,
    )
    from modelhub_sdk.domain.lineage import LineageGraph, LineageRecord, RunRecord
    from modelhub_sdk.errors import (
        Busy,
        ChildFailed,
        ClockSkew,
        Conflict,
        CredentialsRefused,
        DigestMismatch,
        InvalidDocument,
        InvalidName,
        InvalidQuery,
        InvalidURI,
        JournalTooNew,
        KeyReused,
        MissingExtra,
        ModelHubError,
        NoApprovedVersion,
        NotAllowed,
        NotApproved,
        NotFound,
        Offline,
        Purged,
        StoreUnavailable,
        Unmet,
        UnsafeStore,
    )
    from modelhub_sdk.hub import open, resolve, start_run, use  # noqa: A004  (hub.open reads as it does)
    from modelhub_sdk.reads import RegistryView
    from modelhub_sdk.registry import Registry
    from modelhub_sdk.run.session import Run


def __getattr__(name: str) -> Any:
    if name == "cache":
        return importlib.import_module(f"{__name__}.cache")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_advice(name)}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


_OF_A_REGISTRY = (
    "approve", "create_model", "download", "load_model", "log_model", "models", "pull", "push", "register",
    "register_model", "reject", "search", "snapshot_download", "upload", "version", "versions",
)  # fmt: skip


def _advice(name: str) -> str:
    """Return where a verb is that somebody looks for on the package."""
    if name not in _OF_A_REGISTRY:
        return ""
    registry = importlib.import_module(f"{__name__}.registry")
    found = registry.SPELLINGS.get(name, f"use reg.{name}(...).")
    return f": verbs are those of a registry, reg = hub.open(); {found}"


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
