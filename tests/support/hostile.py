"""The catalogue of hostile inputs: what each is, why it is hostile, and whether it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
from attrs import frozen

CATALOGUE = Path(__file__).resolve().parents[1] / "data" / "hostile_inputs.json"
E = TypeVar("E", bound=Exception)
_EVALUATED = ("python-expr", "python-literal", "bytes-expr")


@frozen
class Case:
    """One hostile input. `value` is it, where it can be written down; else `kind` says how to build it."""

    id: str
    why: str
    expect: str
    also_ok: str | None = None
    setup: str | None = None
    kind: str | None = None
    text: str | None = None
    recipe: str | None = None

    @property
    def value(self) -> Any:
        if self.recipe is None:
            return self.text
        return eval(self.recipe, {"OK": _catalogue()["sidecar_jsonl"][0]["input"]})

    def allows(self, outcome: str) -> bool:
        """Whether *outcome* (accept, reject or neutralise) is expected, or documented as fine, too."""
        return outcome == self.expect or self.also_ok is not None


@cache
def _catalogue() -> dict[str, list[dict[str, Any]]]:
    return json.loads(CATALOGUE.read_text("utf-8"))


def cases(*categories: str) -> list[Any]:
    """Return the cases of *categories* that are a value, as parameters for pytest, named by their id."""
    found = [
        Case(
            id=raw["id"],
            why=raw["why"],
            expect=raw["expect"],
            also_ok=raw.get("also_ok"),
            setup=raw.get("setup"),
            kind=raw.get("kind"),
            text=raw.get("input"),
            recipe=raw.get("repr"),
        )
        for category in categories
        for raw in _catalogue()[category]
    ]
    return [pytest.param(case, id=case.id) for case in found if case.kind is None or case.kind in _EVALUATED]


def refusal(call: Callable[[Any], Any], value: Any, error: type[E]) -> E | None:
    """Return the *error* that ``call(value)`` raises, None if it raises nothing; let any other through."""
    try:
        call(value)
    except error as raised:
        return raised
    return None
