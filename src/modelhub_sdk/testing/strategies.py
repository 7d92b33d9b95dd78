"""Hypothesis strategies for what users type, from a name to a whole command.

Random text finds little. What finds bugs stands in the pools: near misses (``churn-2``, ``churn.2``),
ties, mixed case, text that sorts differently by code point, by UTF-16 and by locale, NaN, -0.0,
2**53+1, the empty text, characters beyond the first 65,536. Pools are small on purpose, so that the
same thing is hit twice.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from attrs import field, frozen
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from modelhub_sdk.domain import names as rules
from modelhub_sdk.domain.query import MODEL_FIELDS, VERSION_FIELDS, Fieldset

# --- pools ------------------------------------------------------------------------------------------

MODELS = ("churn", "churn-2", "churn.2")
"""Names of models that are one typing error apart."""
NAMES = (
    *MODELS,
    "chur",
    "churn_2",
    "churn2",
    "0",
    "a",
    "z" * rules.MAX_NAME,
    "v3",
    "model",
    "none",
    "a.b-c_d",
)
BAD_NAMES = (
    "",
    "Churn",
    "churn 2",
    "-churn",
    "a..b",
    "latest",
    "con",
    "a/b",
    "ü",
    "a" * 129,
    "com1.x",
    "model://a",
)
ALIASES = ("champion", "champion-2", "prod", "a")
BAD_ALIASES = ("latest", "v3", "3", "none", "Champion", "")
USERS = ("ana", "Ana", "béla 🦊")
TAGS = (
    "crm",
    "CRM",
    "crm ä",
    "team:risk",
    "team:Risk",
    "ﬀ",
    "e\u0301",
    "é",
    "_x",
    "%",
    "a_b",
    "\uffee",
    "\U00010000",
    "🦊",
)
BAD_TAGS = ("", " crm", "a\nb", "x" * 129, "a\u202eb")
TEXTS = (
    "a", "A", "b", "B", "_x", "", "é", "e\u0301", "ß", "ﬀ", "İ", "Σς", "\uffee", "\U00010000", "🦊 fox",
    " edge ", "  ", "it's", 'say "so"', "100%", "a_b", "back\\slash", "two\nlines", "# Title\n\n- item", "0", "null",
)  # fmt: skip
BAD_TEXTS = ("nul\0", "\ud83e", 7)
NUMBERS = (
    0, 0.0, -0.0, 1, 1.0, True, False, math.nan, math.inf, -math.inf, 0.5, 0.91, 0.1 + 0.2, 0.3, 2**53, 2**53 + 1,
    -(2**53) - 1, 2**63, -(2**63) - 1, 10**25, 1e23, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 10**400,
)  # fmt: skip
KEYS = ("auc", "AUC", "loss", "a.b", "x y", "é", "val/loss", "🦊")
FIELD_KEYS = ("use", "Use", "n", "nest", "nest.a", "nest.a.b", "é")
CONTENTS = (b"", b"weights", b"Weights", b"\0\xff" * 40)
FILES: tuple[Mapping[str, bytes], ...] = (
    {"model.bin": b"weights"},
    {"model.bin": b"Weights"},
    {"model.bin": b"weights", "empty": b""},
    {"a/b.txt": b"", "a/c.txt": b"weights", "Z": b"Z", "_": b"_"},
    {"ü 🦊.bin": b"weights", "\uffee": b"", "\U00010000": b"\0\xff" * 40},
)
PATHS = tuple(dict.fromkeys(path for files in FILES for path in files))
BAD_PATHS = ("", "/etc/passwd", "../x", "a//b", "a\\b", "con", "a.", "x\0", ".git/config", "%2e%2e/x")
INPUTS = ("dataset://clicks/v7", "model://churn/v1", "datum://abc", "s3://bucket/clicks.csv")
BAD_INPUTS = ("clicks", "model://Churn/v1", "s3://user:secret@bucket/x", "dataset://")
MOMENTS = tuple(
    datetime(2026, 3, 1, tzinfo=UTC) + timedelta(microseconds=us)
    for us in (0, 1, -1, 86_399_999_999, 86_400_000_000, 43_200_000_000)
)


def _mostly(good: SearchStrategy[Any], bad: Sequence[Any]) -> SearchStrategy[Any]:
    """Draw from *good*, and one time in twenty from *bad*."""
    return st.integers(0, 19).flatmap(lambda n: good if n else st.sampled_from(bad))


_LETTERS = "aAzZ09 _-+=é\u0301ﬀ\uffee\U00010000🦊"


# --- what users type ------------------------------------------------------------------------------------


def names() -> SearchStrategy[str]:
    """Return good names of models, datasets and projects."""
    edge = st.text("abz09", min_size=1, max_size=4)
    some = st.lists(edge, min_size=1, max_size=3).flatmap(
        lambda parts: st.sampled_from("._-").map(lambda c: c.join(parts))
    )
    return st.sampled_from(NAMES) | some


def aliases() -> SearchStrategy[str]:
    """Return good aliases."""
    return st.sampled_from(ALIASES) | names().map(lambda name: f"x-{name[:100]}x")


def tags() -> SearchStrategy[str]:
    """Return good tags."""
    return st.sampled_from(TAGS) | st.text(_LETTERS, min_size=1, max_size=8).map("t{}t".format)


def texts() -> SearchStrategy[str]:
    """Return free texts that can be stored, the empty one among them."""
    return st.sampled_from(TEXTS) | st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8
    )


def paths() -> SearchStrategy[str]:
    """Return good paths of files in a version."""
    segment = st.text(_LETTERS, min_size=1, max_size=4).map("p{}p".format)
    return st.sampled_from(PATHS) | st.lists(segment, min_size=1, max_size=3).map("/".join)


def files() -> SearchStrategy[dict[str, bytes]]:
    """Return what a version holds, path to bytes: most often what another one holds too."""
    # Never a file where another has a folder: a segment of one's own, then the path.
    some = st.lists(st.tuples(paths(), st.sampled_from(CONTENTS)), min_size=1, max_size=3)
    return st.sampled_from(FILES).map(dict) | some.map(
        lambda p: {f"{n}/{path}": data for n, (path, data) in enumerate(p)}
    )


def numbers() -> SearchStrategy[Any]:
    """Return numbers of every kind, finite or not."""
    return st.sampled_from(NUMBERS) | st.sampled_from(NUMBERS) | st.floats() | st.integers()


def values() -> SearchStrategy[Any]:
    """Return values of parameters and fields: scalars, lists, nested mappings."""
    scalar = st.none() | numbers() | st.sampled_from(TEXTS)
    inner = st.recursive(
        scalar,
        lambda part: (
            st.lists(part, max_size=3)
            | st.dictionaries(st.sampled_from(("a", "b", "a.b", "$x")), part, max_size=2)
        ),
        max_leaves=4,
    )
    return scalar | inner


def metrics() -> SearchStrategy[dict[str, Any]]:
    """Return metrics: few names, so that versions can be compared by them."""
    return st.dictionaries(st.sampled_from(KEYS), numbers() | st.sampled_from(TEXTS), max_size=3)


def params() -> SearchStrategy[dict[str, Any]]:
    """Return parameters, nested ones among them."""
    return st.dictionaries(st.sampled_from(("lr", "LR", "deep", "x y")), values(), max_size=3)


def fields(*, edit: bool = False) -> SearchStrategy[dict[str, Any]]:
    """Return fields; for an *edit* None, which removes one, is more frequent."""
    value = values().map(lambda v: "" if v is None else v)
    return st.dictionaries(st.sampled_from(FIELD_KEYS), st.none() | value if edit else value, max_size=2)


def moments() -> SearchStrategy[datetime]:
    """Return aware times: ends and starts of days, microseconds apart, other zones."""
    return st.sampled_from(MOMENTS) | st.datetimes(
        datetime(2000, 1, 1),  # noqa: DTZ001  # hypothesis adds the zones
        datetime(2100, 1, 1),  # noqa: DTZ001
        timezones=st.timezones(),
    )


def selectors() -> SearchStrategy[str]:
    """Return good selectors of versions: a number, ``latest``, an alias, a manifest's digest."""
    digests = files().map(manifest_digest)
    return st.integers(1, 6).map("v{}".format) | st.just("latest") | st.sampled_from(ALIASES) | digests


def uris() -> SearchStrategy[str]:
    """Return good URIs of every kind in their canonical form."""
    from urllib.parse import quote

    path = paths().map(lambda p: "/" + quote(p, safe="/-._~"))
    model = st.builds("model://{}/{}{}".format, names(), selectors(), st.just("") | path)
    data = st.builds(
        "dataset://{}/{}{}".format, names(), st.sampled_from(("v1", "latest", "2026-03")), st.just("") | path
    )
    return model | data | names().map("datum://{}".format) | names().map("model://{}/".format)


def manifest_digest(content: Mapping[str, bytes]) -> str:
    """Return the digest of the manifest of *content*, by the definition in ``docs/format``."""
    rows = [
        {"algorithm": "sha256", "digest": hashlib.sha256(data).hexdigest(), "name": path, "size": len(data)}
        for path, data in sorted(content.items())
    ]
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


# --- queries ----------------------------------------------------------------------------------------------

_TEXT_OPS = ("=", "!=", "<", "<=", ">", ">=", "~")
_ORDERED = ("=", "!=", "<", "<=", ">", ">=")


def queries(fieldset: Fieldset = VERSION_FIELDS) -> SearchStrategy[str]:
    """Return ``where=`` texts, nearly all of them good, about what the pools hold."""
    good = st.lists(_conditions(fieldset), max_size=2).map(" and ".join)
    return _mostly(
        good, ("tags =", "nonsense = 1", "archived = 1", "metrics.auc = 'x' or number = 1", "(number = 1)")
    )


def orders(fieldset: Fieldset = VERSION_FIELDS) -> SearchStrategy[str | None]:
    """Return ``order_by=`` texts, and None."""
    plain = [name for name, kind in fieldset.kinds.items() if kind not in ("set", "map")]
    keyed = st.builds(
        "{}.{}".format, st.sampled_from(_maps(fieldset)), st.sampled_from(KEYS + FIELD_KEYS).map(_key)
    )
    by = st.sampled_from(plain) | keyed
    return st.none() | by | by.map("-{}".format) | st.just("tags")


def _maps(fieldset: Fieldset) -> list[str]:
    return [name for name, kind in fieldset.kinds.items() if kind == "map"]


def _key(key: str) -> str:
    return ".".join(part if part.isalnum() else f"`{part}`" for part in key.split("."))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _patterns() -> SearchStrategy[str]:
    return st.lists(st.sampled_from(("%", "_", "a", "A", "\\%", "\\_", "crm", "🦊", "\\\\")), max_size=4).map(
        "".join
    )


def _texts_about(name: str) -> SearchStrategy[str]:
    pools: dict[str, tuple[str, ...]] = {
        "model": NAMES, "name": NAMES, "tags": TAGS, "alias": ALIASES, "status": ("pending", "approved", "rejected"),
        "project": NAMES, "created_by": USERS, "decided_by": USERS, "run_id": ("run-1", "Run-1"),
        "digest": tuple(map(manifest_digest, FILES)),
    }  # fmt: skip
    return st.sampled_from(pools.get(name, TEXTS))


@st.composite
def _conditions(draw: st.DrawFn, fieldset: Fieldset) -> str:
    name = draw(st.sampled_from(sorted(fieldset.kinds)))
    kind = fieldset.kinds[name]
    if kind == "flag":
        return f"{name} {draw(st.sampled_from(('=', '!=')))} {draw(st.sampled_from(('true', 'false')))}"
    if kind == "integer":
        return f"{name} {draw(st.sampled_from(_ORDERED))} {draw(st.integers(-1, 8))}"
    if kind == "time":
        moment = draw(st.sampled_from(MOMENTS))
        text = moment.date().isoformat() if draw(st.booleans()) else moment.isoformat()
        return f"{name} {draw(st.sampled_from(('=', '<', '<=', '>', '>=')))} {_quoted(text)}"
    field_name = name
    if kind == "map":
        pool = FIELD_KEYS if name == "fields" else (*KEYS, "lr", "LR", "deep", "deep.a")
        field_name = f"{name}.{_key(draw(st.sampled_from(pool)))}"
        if draw(st.booleans()):
            value = draw(st.sampled_from([n for n in NUMBERS if abs(n) < 1e308]) | st.floats(-1e9, 1e9))
            if isinstance(value, bool):
                return f"{field_name} {draw(st.sampled_from(('=', '!=')))} {str(value).lower()}"
            return f"{field_name} {draw(st.sampled_from(_ORDERED))} {value!r}"
    if name in fieldset.choices:
        return f"{field_name} {draw(st.sampled_from(('=', '!=')))} {_quoted(draw(_texts_about(name)))}"
    if draw(st.integers(0, 3)) == 0:
        return f"{field_name} {draw(st.sampled_from(('LIKE', 'ILIKE')))} {_quoted(draw(_patterns()))}"
    ops = ("=", "!=", "~") if kind == "set" else _TEXT_OPS
    return f"{field_name} {draw(st.sampled_from(ops))} {_quoted(draw(_texts_about(name)))}"


def sortable(fieldset: Fieldset, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return every ``order_by=`` that *rows* (dicts of a model's or a version's attributes) can be sorted by."""
    found = [name for name, kind in fieldset.kinds.items() if kind not in ("set", "map")]
    for name in _maps(fieldset):
        found += sorted({f"{name}.{_key(key)}" for row in rows for key in row[name]})
    return found


def conditions_about(
    fieldset: Fieldset, rows: Sequence[Mapping[str, Any]], chance: random.Random
) -> list[str]:
    """Return conditions on every field with values that *rows* hold, each with an operator by *chance*."""
    found = []
    for name, kind in fieldset.kinds.items():
        for row in rows:
            held = row.get({"alias": "aliases", "project": "projects"}.get(name, name))
            for key, value in held.items() if isinstance(held, Mapping) and kind == "map" else [("", held)]:
                values_ = value if kind == "set" and value is not None else (value,)
                asked = f"{name}.{_key(key)}" if key else name
                found += [
                    text
                    for one in values_
                    if (text := _condition_of(asked, kind, name in fieldset.choices, one, chance))
                ]
    return sorted(set(found))


def _condition_of(asked: str, kind: str, fixed: bool, value: Any, chance: random.Random) -> str | None:
    if isinstance(value, datetime):
        return f"{asked} {chance.choice(('=', '<', '<=', '>', '>='))} {_quoted(value.isoformat())}"
    if isinstance(value, bool):
        return f"{asked} {chance.choice(('=', '!='))} {str(value).lower()}"
    if isinstance(value, (int, float)):
        near = value + chance.choice((0, 0, 0, 1)) if abs(value) < 2**60 else value
        finite = (
            kind == "integer" or (abs(near) < 1e308 and "e" not in str(near)) or 1e-300 < abs(near) < 1e308
        )
        return f"{asked} {chance.choice(_ORDERED)} {near!r}" if finite else None
    if not isinstance(value, str) or "\0" in value:
        return None
    if fixed:
        return f"{asked} {chance.choice(('=', '!='))} {_quoted(value)}"
    if chance.random() < 0.3:
        escaped = "".join("\\" + c if c in "%_\\" else c for c in value.swapcase())
        return (
            f"{asked} {chance.choice(('LIKE', 'ILIKE'))} {_quoted(escaped[:3] + '%')}"
            if "\\" not in escaped[:3]
            else None
        )
    return f"{asked} {chance.choice(('=', '!=', '~') if kind == 'set' else _TEXT_OPS)} {_quoted(value)}"


# --- commands ---------------------------------------------------------------------------------------------


@frozen
class Command:
    """One call of a verb of `Registry`, as a value: who, what, with which arguments.

    Attributes:
        verb: the method's name.
        args: its positional arguments.
        options: its keyword arguments.
        user: who acts.
        after: microseconds that pass before it; they may be 0, or negative (a clock was set back).
    """

    verb: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(factory=dict)
    user: str = USERS[0]
    after: int = 1


@frozen
class Annotated:
    """One output of a run with its annotations: (model, number or None, tags, note)."""

    data: bytes
    models: tuple[tuple[str, int | None, tuple[str, ...], str | None], ...] = ()


def _models() -> SearchStrategy[str]:
    """Return names of models: the same one most often, for a history of several steps to come together."""
    return st.sampled_from((*MODELS[:1] * 3, *MODELS))


def _numbers() -> SearchStrategy[int]:
    return st.sampled_from((1, 1, 1, 1, 2, 2, 3))


def model_names() -> SearchStrategy[Any]:
    """Return names of few models, seldom a bad one."""
    return _mostly(_models(), BAD_NAMES)


def version_refs(*, moving: bool = True) -> SearchStrategy[str]:
    """Return references to versions that may exist; with *moving*, also by other than their number."""
    fixed = st.builds("{}/v{}".format, _models(), _numbers())
    whole = st.builds("model://{}/{}".format, _models(), _numbers())
    other = st.builds("{}/{}".format, _models(), selectors())
    bad = ("churn/v0", "churn", "model://churn/", "Churn/v1", "churn/v1/v2/..", "dataset://churn/v1")
    seldom = st.integers(0, 7).flatmap(lambda n: fixed | whole if n or not moving else other)
    return _mostly(seldom, (*bad, "churn/latest", "churn/champion", "churn/" + manifest_digest(FILES[0])))


def any_refs() -> SearchStrategy[str]:
    """Return references to models and versions that may exist."""
    return _models() | version_refs()


def _options(**parts: SearchStrategy[Any]) -> SearchStrategy[dict[str, Any]]:
    """Return dicts with any of *parts*, each there as often as not."""
    return st.fixed_dictionaries({}, optional=parts)


def _tag_lists() -> SearchStrategy[list[Any]]:
    return st.lists(_mostly(st.sampled_from(TAGS), BAD_TAGS), max_size=3)


def _some_text() -> SearchStrategy[Any]:
    return _mostly(st.sampled_from(("a", "A", "b", "B", "_x", "é")) | st.sampled_from(TEXTS), BAD_TEXTS)


def _project_lists() -> SearchStrategy[list[Any]]:
    return st.lists(_mostly(st.sampled_from(("crm", "risk")), BAD_NAMES), max_size=2)


def _seqs() -> SearchStrategy[Any]:
    """Return how many entries ago somebody read what is edited; the machine makes an `if_seq` of it."""
    return st.sampled_from((0, 0, 0, 1, 2))


def _made(
    verb: str, *args: SearchStrategy[Any], options: SearchStrategy[dict[str, Any]] | None = None
) -> SearchStrategy[Command]:
    return st.builds(
        Command,
        st.just(verb),
        st.tuples(*args),
        options if options is not None else st.just({}),
        st.sampled_from(USERS),
        st.sampled_from((0, 1, 1_000_000, 3_600_000_000, 86_400_000_000, -5_000_000)),
    )


def create_model() -> SearchStrategy[Command]:
    """Return calls of `Registry.create_model`."""
    texts_ = {name: _some_text() for name in ("title", "description", "owner")}
    more = _options(**texts_, fields=fields(edit=True), tags=_tag_lists(), projects=_project_lists())
    return _made("create_model", model_names(), options=more)


def edit_model() -> SearchStrategy[Command]:
    """Return calls of `Registry.edit_model` with any of its options; `if_seq` counts entries back."""
    lists = {name: _tag_lists() for name in ("tags", "add_tags", "remove_tags")}
    texts_ = {name: _some_text() for name in ("title", "description", "owner")}
    more = _options(**texts_, **lists, fields=fields(edit=True), projects=_project_lists(), if_seq=_seqs())
    return _made("edit_model", model_names(), options=more)


def register() -> SearchStrategy[Command]:
    """Return calls of `Registry.register`."""
    content = _mostly(files(), ({}, {"a": b"", "a/b": b""}, *({path: b""} for path in BAD_PATHS)))
    keys = st.sampled_from(("key-1", "Key-1"))
    more = _options(
        metrics=metrics(), params=params(), tags=_tag_lists(), note=_some_text(), fields=fields(),
        inputs=st.lists(_mostly(st.sampled_from(INPUTS), BAD_INPUTS), max_size=2), idempotency_key=keys,
    )  # fmt: skip
    return _made("register", model_names(), content, options=more) | good_registration()


def good_registration() -> SearchStrategy[Command]:
    """Return calls of `Registry.register` that nothing is wrong with but, at times, a key that was used."""
    more = _options(
        metrics=metrics(), params=params(), tags=st.lists(st.sampled_from(TAGS), max_size=3), fields=fields(),
        note=_some_text().filter(lambda text: text not in BAD_TEXTS), idempotency_key=st.sampled_from(("key-1", "key-2")),
    )  # fmt: skip
    return _made("register", _models(), st.sampled_from(FILES).map(dict), options=more)


def edit_version() -> SearchStrategy[Command]:
    """Return calls of `Registry.edit_version`; `if_seq` counts entries back."""
    lists = {name: _tag_lists() for name in ("tags", "add_tags", "remove_tags")}
    more = _options(
        note=_some_text(), description=_some_text(), **lists, fields=fields(edit=True), if_seq=_seqs()
    )
    return _made("edit_version", version_refs(), options=more)


def comment() -> SearchStrategy[Command]:
    """Return calls of `Registry.comment`."""
    return _made("comment", version_refs(), _some_text())


def add_evaluation() -> SearchStrategy[Command]:
    """Return calls of `Registry.add_evaluation`."""
    more = _options(
        data=_mostly(st.sampled_from(INPUTS), BAD_INPUTS),
        note=_some_text(),
        files=st.sampled_from(FILES).map(dict),
    )
    return _made("add_evaluation", version_refs(), metrics(), options=more)


def attach() -> SearchStrategy[Command]:
    """Return calls of `Registry.attach`."""
    return _made(
        "attach", version_refs(), _mostly(st.sampled_from(PATHS), BAD_PATHS), st.sampled_from(CONTENTS)
    )


def decide() -> SearchStrategy[Command]:
    """Return calls of `Registry.approve`, `reject` and `reopen`."""
    reason = st.sampled_from(("", "recall +5 %", "overfits")) | _some_text()
    return st.sampled_from(("approve", "approve", "reject", "reopen")).flatmap(
        lambda verb: _made(verb, version_refs(moving=False), reason)
    )


def set_alias() -> SearchStrategy[Command]:
    """Return calls of `Registry.set_alias`, some with weights."""
    one = _numbers()
    shares = st.tuples(one, one, st.integers(1, 99)).map(lambda t: {f"v{t[0]}": t[2], f"v{t[1]}": 100 - t[2]})
    bad: tuple[Any, ...] = ({}, {"v1": 50}, {"v1": 0, "v2": 100}, 0, "latest", True, "champion", 99)
    target = _mostly(one | one.map("v{}".format) | shares, bad)
    alias = _mostly(st.sampled_from(ALIASES), BAD_ALIASES)
    return _made("set_alias", model_names(), alias, target, options=_options(reason=_some_text()))


def move_alias() -> SearchStrategy[Command]:
    """Return calls of `Registry.delete_alias` and `rollback`."""
    alias = _mostly(st.sampled_from(ALIASES), BAD_ALIASES)
    named = st.builds("{}/{}".format, _models(), st.sampled_from(ALIASES))
    return _made("delete_alias", model_names(), alias, options=_options(reason=_some_text())) | _made(
        "rollback", _mostly(named, ("churn/v1", "churn/latest", "churn")), _some_text()
    )


def archive() -> SearchStrategy[Command]:
    """Return calls of `Registry.archive` and `restore`."""
    return st.sampled_from(("archive", "archive", "restore")).flatmap(
        lambda verb: _made(verb, any_refs(), st.just("") | _some_text())
    )


def purge() -> SearchStrategy[Command]:
    """Return calls of `Registry.purge`."""
    some = st.lists(_mostly(st.sampled_from(PATHS), BAD_PATHS), max_size=2)
    return _made(
        "purge", version_refs(moving=False), _some_text(), options=_options(files=some, force=st.booleans())
    )


def redact() -> SearchStrategy[Command]:
    """Return calls of `Registry.redact`."""
    what = ["note", "description", "title", "owner", "reasons", "comments", "evaluations", "all", "actor"]
    whats = st.sampled_from(what + [f"fields.{key}" for key in FIELD_KEYS])
    return _made("redact", any_refs(), whats, st.just("asked to") | _some_text())


def configure() -> SearchStrategy[Command]:
    """Return calls of `Registry.configure`."""
    return _made(
        "configure",
        options=_options(
            require=_mostly(st.sampled_from(("", "approved")), ("yes",)),
            external=_mostly(
                st.sampled_from(([], ["s3://bucket/"], ["s3://b/", "https://c/"])), (["file:///"],)
            ),
            model_names=_mostly(st.sampled_from(("", "churn.*", "[a-z0-9-]+")), ("(",)),
            required_fields=st.sampled_from(([], [], [], ["use"])),
            metrics=_mostly(
                st.sampled_from(({}, {"loss": "min"}, {"auc": "max", "loss": "min"})), ({"x": "up"},)
            ),
        ),
    )


def ingest() -> SearchStrategy[Command]:
    """Return calls of `Registry.ingest`, its folder given as a mapping of path to `Annotated`."""
    number = st.none() | st.integers(1, 4)
    note = st.none() | st.sampled_from([t for t in TEXTS if t.strip() and "\n" not in t])
    wish = st.tuples(_models(), number, st.lists(st.sampled_from(TAGS), max_size=2).map(tuple), note)
    # Of one file, one annotation for each URI: a repeated one is the sidecar parser's business.
    wishes = st.lists(wish, max_size=2, unique_by=lambda w: w[:2]).map(tuple)
    output = st.builds(Annotated, st.sampled_from(CONTENTS), wishes)
    plain = st.sampled_from(("model.bin", "sub/report.txt", "Z", "empty"))
    outputs = st.dictionaries(plain, output, max_size=3)
    more = _options(
        run=st.sampled_from(("run-1", "Run-1")), metrics=metrics(), params=params(),
        idempotency_key=st.sampled_from(("key-1", "key-2")), inputs=st.lists(st.sampled_from(INPUTS), max_size=1),
        keep=st.sampled_from(("annotated", "all")),
    )  # fmt: skip
    return _made("ingest", outputs, options=more)


def resolve() -> SearchStrategy[Command]:
    """Return calls of `Registry.resolve`."""
    more = _options(require=st.sampled_from(("approved", "")))
    by_name = st.builds("{}/{}".format, _models(), selectors())
    return _made("resolve", version_refs() | by_name, options=more)


VERBS: Mapping[str, Callable[[], SearchStrategy[Command]]] = {
    make.__name__: make
    for make in (
        create_model, edit_model, register, edit_version, comment, add_evaluation, attach, decide, set_alias,
        move_alias, archive, purge, redact, configure, ingest, resolve, good_registration,
    )
}  # fmt: skip
"""Every kind of command -> its strategy."""


@st.composite
def commands(draw: st.DrawFn, *kinds: str) -> Command:
    """Return whole commands of these kinds (keys of `VERBS`), of every kind when none is named."""
    return draw(_of_kind(draw(st.sampled_from(kinds or tuple(VERBS)))))


@functools.cache
def _of_kind(kind: str) -> SearchStrategy[Command]:
    return VERBS[kind]()


__all__ = [
    "MODEL_FIELDS", "VERBS", "VERSION_FIELDS", "Annotated", "Command", "aliases", "commands",
    "conditions_about", "fields", "files", "good_registration", "manifest_digest", "metrics",
    "moments", "names", "numbers", "orders", "params", "paths",
    "queries", "selectors", "sortable", "tags", "texts", "uris", "values",
]  # fmt: skip
