"""What names a model or a version, and what it means now."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TypeAlias

from modelhub_sdk.domain import names, rules
from modelhub_sdk.domain.entities import Alias, Dataset, DatasetVersion, Model, ModelVersion, Resolved
from modelhub_sdk.domain.uri import (
    ByDigest,
    DatasetURI,
    Latest,
    ModelURI,
    Named,
    Number,
    Selector,
    is_moving,
    parse_ref,
    parse_uri,
)
from modelhub_sdk.errors import (
    InvalidURI,
    ModelHubError,
    NoApprovedVersion,
    NotAllowed,
    NotFound,
    nearest,
    shown,
)
from modelhub_sdk.index import data
from modelhub_sdk.index.queries import View

Ref: TypeAlias = "str | Model | ModelVersion | Alias | Resolved"
"""What names a model or a version: a value, a ``model://`` URI, or ``"churn"``, ``"churn/v3"``, ``"churn/champion"``."""

DatasetRef: TypeAlias = "str | Dataset | DatasetVersion"
"""What names a dataset or a version of one: a value, a ``dataset://`` URI, or ``"clicks"``, ``"clicks/v7"``."""


def any_uri(ref: Ref) -> ModelURI:
    """Return the URI of the model, version or alias that *ref* names."""
    if isinstance(ref, ModelVersion):
        return ModelURI(ref.model, Number(ref.number))
    if isinstance(ref, Model):
        return ModelURI(ref.name, None)
    if isinstance(ref, Alias):
        return ModelURI(ref.model, Named(ref.name))
    if isinstance(ref, Resolved):
        return parse_ref(ref.uri, kind="any")  # of a dataset: the error says what is wrong
    return parse_ref(ref, kind="any")


def model_or_version(ref: Ref) -> ModelURI:
    """Return what a verb is to work on; ``model://churn/`` could be a version whose number was left out."""
    uri = any_uri(ref)
    if uri.selector is None and isinstance(ref, str) and ref.endswith("/"):
        raise InvalidURI(
            f"{shown(ref)} could mean the model, or a version whose number is missing.",
            hint=f"Write {uri.name!r} for the model, or '{uri.name}/v1' for a version.",
        )
    return uri


def model_name(ref: Ref) -> str:
    """Return the name of the model that *ref* names; of a version, its model."""
    if isinstance(ref, (Model, ModelVersion, Alias, Resolved)):
        return any_uri(ref).name
    if isinstance(ref, str) and "/" not in ref:
        return names.check_name(ref)  # a plain name: its error has the nearest good one
    return parse_ref(ref, kind="model").name


def version_uri(ref: Ref) -> ModelURI:
    """Return the URI of the version that *ref* names."""
    if isinstance(ref, (ModelVersion, Alias, Resolved)):
        return any_uri(ref)
    return parse_ref(ref if isinstance(ref, str) or not isinstance(ref, Model) else ref.name, kind="version")


def fixed_uri(ref: Ref, verb: str) -> ModelURI:
    """Return the version that *ref* names, refusing names that may move under the caller."""
    try:
        uri = version_uri(ref)
    except InvalidURI as error:
        with suppress(ModelHubError):  # a model's name: the usual advice, latest, would be refused too
            error.hint = f'For example reg.{verb}("{model_name(ref)}/v3", ...).'
        raise
    if is_moving(uri.selector):
        raise NotAllowed(
            f"{verb} needs a version by its number, and {shown(str(uri))} can move: decide on what you saw.",
            hint=f'For example reg.{verb}("{uri.name}/v3", ...).',
        )
    return uri


def pin(view: View, uri: ModelURI, route_key: str | None = None) -> int:
    """Return the number that *uri* means now.

    Raises:
        NotFound: no such model, alias or digest.
        NoApprovedVersion: `latest` of a model that has none.
    """
    selector: Selector | None = uri.selector
    if isinstance(selector, Number):
        return selector.number
    if isinstance(selector, Latest):
        number = view.latest(uri.name)
        if number is None:
            rules.model_exists(view, uri.name)
            pending = view.with_status(uri.name, "pending")
            waiting = ", ".join(f"v{n}" for n in pending)
            raise NoApprovedVersion(
                f"model://{uri.name}/latest: no version is approved"
                + (f"; pending: {waiting}." if waiting else "."),
                hint=f'Approve one: reg.approve("{uri.name}/v{pending[0]}", reason).' if pending else "",
                model=uri.name,
                pending=pending,
            )
        return number
    if isinstance(selector, ByDigest):
        found = view.by_manifest(uri.name, selector.digest)
        if found is None:
            rules.model_exists(view, uri.name)
            raise NotFound(f"{shown(uri.name)} has no version with the manifest {selector.digest}.")
        return found
    if isinstance(selector, Named):
        alias = view.alias(uri.name, selector.alias)
        if alias is None:
            raise no_alias(view, uri.name, selector.alias)
        return _routed(alias, route_key)
    raise InvalidURI(
        f"{shown(str(uri))} names a model, and a version is needed.", hint=f"model://{uri.name}/latest"
    )


def _routed(alias: Alias, route_key: str | None) -> int:
    """Return the version of a weighted alias for *route_key*: the same key, the same version."""
    if len(alias.weights) == 1 or route_key is None:
        return alias.number
    place = int.from_bytes(hashlib.sha256(f"{alias.uri}\n{route_key}".encode()).digest()[:8], "big") % 100
    for number in sorted(alias.weights):
        place -= alias.weights[number]
        if place < 0:
            return number
    return alias.number


def no_alias(view: View, model: str, alias: str) -> NotFound:
    """Return the error for an alias that points at nothing."""
    rules.model_exists(view, model)
    known = sorted(view.model(model).aliases)
    has = (
        f" It has {', '.join(known)}."
        if known
        else f' It has no aliases: reg.set_alias("{model}", "{alias}", "v1", reason) makes one.'
    )
    return NotFound(
        f"The model {shown(model)} has no alias {shown(alias)}.", hint=has.strip(), nearest=tuple(known)
    )


def found_version(view: View, model: str, number: int) -> ModelVersion:
    """Return a version as it is in *view*, or raise NotFound."""
    rules.version_exists(view, model, number)
    version = view.version(model, number)
    if version is None:
        raise NotFound(f"There is no model://{model}/v{number}.")
    return version


# --- datasets -------------------------------------------------------------------------------------------


def dataset_uri(ref: object) -> DatasetURI:
    """Return the dataset, or the version of one, that *ref* names: a value, a URI, ``clicks`` or ``clicks/v7``."""
    if isinstance(ref, Dataset):
        return DatasetURI(ref.name)
    if isinstance(ref, DatasetVersion):
        return DatasetURI(ref.dataset, ref.version)
    if isinstance(ref, Resolved):
        return dataset_uri(ref.uri)
    if isinstance(ref, str) and "://" not in ref:
        name, slash, version = ref.partition("/")
        return DatasetURI(names.check_name(name, "dataset name"), version if slash and version else None)
    found = parse_uri(ref)
    if not isinstance(found, DatasetURI):
        raise InvalidURI(f"{shown(str(found))} names no dataset.", hint="Write dataset://<name>/<version>.")
    return found


def dataset_name(ref: object) -> str:
    """Return the name of the dataset that *ref* names; of a version, its dataset."""
    return dataset_uri(ref).name


def dataset_version_uri(ref: object) -> DatasetURI:
    """Return the version that *ref* names."""
    uri = dataset_uri(ref)
    if uri.version is None:
        raise InvalidURI(
            f"Which version of the dataset {shown(uri.name)} is missing.",
            hint=f"Write dataset://{uri.name}/v1.",
        )
    return uri


def pin_dataset(view: View, uri: DatasetURI) -> int:
    """Return the number of the version that *uri* means now.

    Raises:
        NotFound: there is no such dataset, version or alias.
    """
    dataset_exists(view, uri.name)
    version = data.selected(view, uri.name, uri.version or "latest")
    number = None if version is None else data.number_of(view, uri.name, version)
    if number is None:
        known = [*reversed(data.version_names(view, uri.name)), *data.aliases(view, uri.name)]
        some = ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
        near = nearest(uri.version or "", known)
        raise NotFound(
            f"The dataset {shown(uri.name)} has no version or alias {shown(uri.version)}.",
            hint=f"It has {some}." if known else "It has no versions yet.",
            nearest=near,
        )
    return number


def dataset_exists(view: View, name: str) -> None:
    """Raise NotFound unless the dataset exists."""
    if not data.has_dataset(view, name):
        near = nearest(name, data.dataset_names(view))
        did = f"Did you mean {', '.join(near)}?" if near else "reg.create_dataset_version(...) makes it."
        raise NotFound(f"There is no dataset {shown(name)}.", hint=did, nearest=near)
