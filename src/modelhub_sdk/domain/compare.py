"""Versions side by side: `compare` makes a `Comparison`, the views show it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

from attrs import field, frozen

from modelhub_sdk.domain.entities import File, ModelVersion, few
from modelhub_sdk.domain.lineage import RunRecord
from modelhub_sdk.domain.values import Frozen, Value, number
from modelhub_sdk.errors import InvalidQuery, shown

__all__ = ["ABSENT", "Absent", "Cell", "Comparison", "Direction", "Row", "compare"]

Direction = Literal["min", "max"]


class Absent(Enum):
    """Marks what a version does not have; None is a value that it does have."""

    ABSENT = "absent"

    def __bool__(self) -> bool:
        return False


ABSENT: Final = Absent.ABSENT
Cell: TypeAlias = "Value | File | datetime | Absent"


@frozen
class Row:
    """One thing compared: a cell for each version, `ABSENT` where a version has none.

    `better` says whether less or more is better, where that is known. `best` are the positions of
    the versions with the best number; empty where there is no better.
    """

    name: str
    cells: tuple[Cell, ...]
    better: Direction | None = None

    @property
    def changed(self) -> bool:
        """Whether the versions differ here."""
        return any(_identity(cell) != _identity(self.cells[0]) for cell in self.cells[1:])

    @property
    def best(self) -> tuple[int, ...]:
        """Positions of the best finite numbers; empty if all are equal or nobody knows what is better."""
        numbers = [(number(cell), place) for place, cell in enumerate(self.cells)]
        finite = [(value, place) for value, place in numbers if value is not None]
        if self.better is None or len({value for value, _ in finite}) < 2:
            return ()
        top = (min if self.better == "min" else max)(value for value, _ in finite)
        return tuple(place for value, place in finite if value == top)

    def change(self, place: int) -> float | None:
        """Return how much the number at *place* is above that of the first version; None if not numbers."""
        first, other = number(self.cells[0]), number(self.cells[place])
        if place == 0 or first is None or other is None or isinstance(self.cells[place], bool):
            return None
        return other - first

    def improved(self, place: int) -> bool | None:
        """Return whether the number at *place* is better than the first; None if equal or not known."""
        change = self.change(place)
        if not change or self.better is None:
            return None
        return (change > 0) == (self.better == "max")


def _identity(cell: Cell) -> object:
    if isinstance(cell, File):
        return cell.digest
    if isinstance(cell, float):
        return ("number", "NaN" if math.isnan(cell) else cell)  # NaN is the same as NaN here
    if isinstance(cell, int) and not isinstance(cell, bool):
        return ("number", cell)
    return (type(cell).__name__, cell)


@frozen
class Comparison:
    """Versions side by side, in the order in which they were given.

    `facts` are status, times, people, number of files, size (bytes) and duration (seconds), those that
    any version has; `metrics`, `params` and `fields` have a row for every key that any version has;
    `files` a row for every path, compared by digest; `inputs` a row for every data set, model or place;
    `code` commit, branch, entry and uncommitted changes (their digest) of the runs that made them.
    """

    versions: tuple[ModelVersion, ...] = field(repr=few)
    facts: tuple[Row, ...] = field(repr=few)
    metrics: tuple[Row, ...] = field(repr=few)
    params: tuple[Row, ...] = field(repr=few)
    fields: tuple[Row, ...] = field(repr=few)
    files: tuple[Row, ...] = field(repr=few)
    inputs: tuple[Row, ...] = field(repr=few)
    code: tuple[Row, ...] = field(default=(), repr=few)

    @property
    def labels(self) -> tuple[str, ...]:
        """A short name for each version: ``v1``, or ``churn/v1`` where models differ."""
        one_model = len({version.model for version in self.versions}) == 1
        return tuple(f"v{v.number}" if one_model else f"{v.model}/v{v.number}" for v in self.versions)

    @property
    def sections(self) -> Mapping[str, tuple[Row, ...]]:
        """The rows by section, those without rows left out."""
        names = ("metrics", "params", "inputs", "code", "files", "fields", "facts")
        return Frozen({name: getattr(self, name) for name in names if getattr(self, name)})

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts: ``{"versions": [uri, …], "metrics": {"auc": {uri: value}}, …}``.

        A version without a value is left out of that mapping; files appear by digest, times as ISO text.
        """
        from modelhub_sdk.views import tables

        uris = [version.uri for version in self.versions]
        out: dict[str, Any] = {"versions": uris}
        for section, rows in self.sections.items():
            out[section] = {
                row.name: {
                    uri: cell.digest if isinstance(cell, File) else tables.plain(cell)
                    for uri, cell in zip(uris, row.cells, strict=True)
                    if cell is not ABSENT
                }
                for row in rows
            }
        return out

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame``: a row for each thing compared, a column for each version.

        The index has two levels, ``section`` and ``name``; what a version lacks is None.

        Raises:
            MissingExtra: pandas is not installed.
        """
        from modelhub_sdk.views import tables

        return tables.comparison_to_pandas(self)

    def __str__(self) -> str:
        from modelhub_sdk.views import text

        return text.render(self)

    def _repr_html_(self) -> str:
        from modelhub_sdk.views import html

        return html.render(self)


def compare(
    versions: Sequence[ModelVersion],
    *,
    directions: Mapping[str, str] | None = None,
    runs: Mapping[str, RunRecord] = Frozen(),
) -> Comparison:
    """Return *versions* side by side; one that is given twice counts once.

    Args:
        versions: of one model or of several.
        runs: the runs that made them, by id: their code is compared, and what they read.
        directions: ``{"loss": "min"}`` for metrics where less is better, ``"max"`` for the others.
            What is not said is concluded from common words in the name (``loss``, ``rmse``,
            ``accuracy``, ``auc`` …), or left open.

    Raises:
        InvalidQuery: no versions, or a direction other than ``min`` and ``max``.
    """
    unique = tuple({version.uri: version for version in versions}.values())
    if not unique:
        raise InvalidQuery("There is nothing to compare.", hint="Name at least one version.")
    for metric, direction in (directions or {}).items():
        if direction not in ("min", "max"):
            raise InvalidQuery(
                f"The direction of {shown(metric)} is {shown(direction)}.", hint="Write 'min' or 'max'."
            )

    def better(name: str) -> Direction | None:
        stated: Any = (directions or {}).get(name)
        return stated or _concluded(name)

    def rows(
        mappings: Iterable[Mapping[str, Any]], judge: Callable[[str], Direction | None]
    ) -> tuple[Row, ...]:
        columns = list(mappings)
        names = sorted({name for column in columns for name in column})
        return tuple(Row(n, tuple(column.get(n, ABSENT) for column in columns), judge(n)) for n in names)

    def unjudged(_: str) -> None:
        return None

    facts = [Row(name, tuple(read(version) for version in unique)) for name, read in _FACTS.items()]
    return Comparison(
        versions=unique,
        facts=tuple(row for row in facts if any(cell is not ABSENT for cell in row.cells)),
        metrics=rows((version.metrics for version in unique), better),
        params=rows((version.params for version in unique), unjudged),
        fields=rows((version.fields for version in unique), unjudged),
        files=rows(({file.path: file for file in version.files} for version in unique), unjudged),
        inputs=rows((_inputs(_read(version, runs)) for version in unique), unjudged),
        code=rows((_code(runs.get(version.run_id or "")) for version in unique), unjudged),
    )


def _read(version: ModelVersion, runs: Mapping[str, RunRecord]) -> Iterable[str]:
    """Return what a version was made of: what its run read, with what was said at the registration."""
    run = runs.get(version.run_id or "")
    return dict.fromkeys(
        [*version.inputs, *(one.uri for one in run.inputs if one.uri != version.uri)]
        if run
        else version.inputs
    )


def _code(run: RunRecord | None) -> dict[str, str]:
    """Return what there is to compare of a run's code."""
    if run is None:
        return {}
    code = run.code
    changes = code.diff or {True: "yes", False: None, None: None}[code.dirty]
    facts = {
        "commit": code.commit,
        "branch": code.branch,
        "entry": code.entry,
        "uncommitted changes": changes,
        "script": None if code.commit else code.script,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _or_absent(value: Any) -> Any:
    return ABSENT if value is None else value


_FACTS: Mapping[str, Callable[[ModelVersion], Any]] = {
    "status": lambda version: version.status + (" (archived)" if version.archived else ""),
    "aliases": lambda version: version.aliases or ABSENT,
    "tags": lambda version: version.tags or ABSENT,
    "created": lambda version: version.created_at,
    "created by": lambda version: _or_absent(version.created_by),
    "decided": lambda version: _or_absent(version.decided_at),
    "decided by": lambda version: _or_absent(version.decided_by),
    "reason": lambda version: _or_absent(version.reason),
    "run": lambda version: _or_absent(version.run_id),
    "duration": lambda version: _or_absent(version.duration),
    "files": lambda version: len(version.files),
    "size": lambda version: version.size,
    "digest": lambda version: version.digest,
}


def _inputs(uris: Iterable[str]) -> dict[str, str]:
    """Return the inputs by what they are, with which version of it: a changed version is one row."""
    out: dict[str, list[str]] = {}
    for uri in uris:
        match = re.match(r"((?:dataset|model)://[^/]+)/(.+)", uri, re.DOTALL)
        name, which = match.groups() if match else (uri, "used")
        out.setdefault(name, []).append(which)
    return {name: ", ".join(sorted(which)) for name, which in out.items()}


_LESS = """
loss logloss error err mae mse rmse rmsle mape smape nll perplexity ppl brier ece wer cer latency
fpr fnr divergence kl fid
"""
_MORE = """
accuracy acc auc auroc auprc roc f1 fbeta precision recall sensitivity specificity r2 map ndcg mrr
iou dice bleu rouge score tpr tnr gain lift throughput psnr ssim kappa mcc gini reward
"""


def _concluded(name: str) -> Direction | None:
    """Conclude from the words of a metric's name what is better; one word for "less" decides."""
    words = set(re.findall(r"[a-z]+[0-9]?", name.lower()))
    if words.intersection(_LESS.split()):
        return "min"
    return "max" if words.intersection(_MORE.split()) else None
