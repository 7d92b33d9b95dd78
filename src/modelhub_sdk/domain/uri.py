"""The URIs of models, datasets and single files: parsed by one small grammar, printed in one spelling.

::

    uri          = model-uri | dataset-uri | datum-uri
    model-uri    = "model://" name "/" [ selector [ "/" path ] ]
    selector     = [ "v" ] number | "latest" | alias | "sha256:" 64 hex     printed as v<number>
    dataset-uri  = "dataset://" name "/" [ version-name [ "/" path ] ]
    datum-uri    = "datum://" name                                          an id or an alias
    path         = segment *( "/" segment )
    segment      = 1*( unreserved | "%" HEXDIG HEXDIG )                     decoded once, as UTF-8
    unreserved   = ALPHA | DIGIT | "-" | "." | "_" | "~"
    number       = 1 … 2147483647, ASCII digits, no leading zero

Names, aliases and paths are those of `names`; ``%`` stands in paths alone. Nothing is trimmed or
folded, and there is no query, fragment, user or port. ``parse(str(uri)) == uri`` holds for every
URI, and ``str(parse(text))`` is a fixed point for every text that parses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, NoReturn, TypeAlias, TypeVar
from urllib.parse import unquote_to_bytes

from attrs import field, frozen
from attrs.converters import optional

from modelhub_sdk.domain.names import check_alias, check_name, check_number, check_path, check_version_name
from modelhub_sdk.errors import InvalidName, InvalidURI, shown

__all__ = [
    "MAX_URI",
    "ByDigest",
    "DatasetURI",
    "DatumURI",
    "Latest",
    "ModelURI",
    "Named",
    "Number",
    "Selector",
    "is_moving",
    "node_of",
    "parse_ref",
    "parse_selector",
    "parse_uri",
    "quote_path",
]

MAX_URI = 4096
"""Characters in a URI: enough for the longest name, selector and path."""

T = TypeVar("T")

_NUMBER = re.compile(r"v?([1-9][0-9]{0,9})")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}):")
_SEGMENT = re.compile(r"(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})+")
_BAD_IN_SEGMENT = re.compile(r"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9._~%-]")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_SCHEMES = ("model", "dataset", "datum")


def _digest(text: object) -> str:
    """Return *text* if it is ``sha256:`` and 64 lower-case hexadecimal digits, else raise InvalidName."""
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise InvalidName(
            f"{shown(text)} is not a digest.",
            hint="Write 'sha256:' and all 64 lower-case hexadecimal digits.",
        )
    return str.__str__(text)


@frozen
class Number:
    """The version with this number: fixed."""

    number: int = field(converter=check_number)

    def __str__(self) -> str:
        return f"v{self.number}"


@frozen
class Latest:
    """The highest-numbered version that is approved now and not archived: moves."""

    def __str__(self) -> str:
        return "latest"


@frozen
class Named:
    """The version that an alias points at: moves."""

    alias: str = field(converter=check_alias)

    def __str__(self) -> str:
        return self.alias


@frozen
class ByDigest:
    """The highest approved version with this manifest digest, else the highest not archived: moves."""

    digest: str = field(converter=_digest)

    def __str__(self) -> str:
        return self.digest


Selector: TypeAlias = Number | Latest | Named | ByDigest
"""Which version of a model."""


def _selector(value: object) -> Selector | None:
    if value is None or isinstance(value, (Number, Latest, Named, ByDigest)):
        return value
    raise InvalidName(
        f"{shown(value)} is not a selector.",
        hint="Use Number, Latest, Named or ByDigest, or parse_selector(text).",
    )


def _dataset_name(text: object) -> str:
    return check_name(text, "dataset name")


def _datum_id(text: object) -> str:
    return check_name(text, "datum id or alias")


def _no_path_without(version: object, path: str | None, what: str) -> None:
    if version is None and path is not None:
        raise InvalidName(
            f"The path {shown(path)} needs a {what}.", hint=f"Say in which {what} the file lies."
        )


@frozen
class ModelURI:
    """A model (`selector` is None: ``model://churn/``), a version of it, or one file of a version.

    Raises:
        InvalidName: a part that no such URI can have.
    """

    name: str = field(converter=check_name)
    selector: Selector | None = field(default=None, converter=_selector)
    path: str | None = field(default=None, converter=optional(check_path))

    def __attrs_post_init__(self) -> None:
        _no_path_without(self.selector, self.path, "version")

    def __str__(self) -> str:
        text = f"model://{self.name}/" if self.selector is None else f"model://{self.name}/{self.selector}"
        return text if self.path is None else f"{text}/{quote_path(self.path)}"

    @classmethod
    def parse(cls, text: object) -> ModelURI:
        """Return the model URI that *text* is; see the module for the grammar.

        Raises:
            InvalidURI: with the place of the fault.
        """
        return _Parser(text).of_kind(cls, "model")


@frozen
class DatasetURI:
    """A dataset (`version` is None), a version or alias of it, or one file of a version.

    Raises:
        InvalidName: a part that no such URI can have.
    """

    name: str = field(converter=_dataset_name)
    version: str | None = field(default=None, converter=optional(check_version_name))
    path: str | None = field(default=None, converter=optional(check_path))

    def __attrs_post_init__(self) -> None:
        _no_path_without(self.version, self.path, "version")

    def __str__(self) -> str:
        text = f"dataset://{self.name}/{self.version or ''}"
        return text if self.path is None else f"{text}/{quote_path(self.path)}"

    @classmethod
    def parse(cls, text: object) -> DatasetURI:
        """Return the dataset URI that *text* is.

        Raises:
            InvalidURI: with the place of the fault.
        """
        return _Parser(text).of_kind(cls, "dataset")


@frozen
class DatumURI:
    """One stored file, by its id or alias.

    Raises:
        InvalidName: the id is no name.
    """

    id: str = field(converter=_datum_id)

    def __str__(self) -> str:
        return f"datum://{self.id}"

    @classmethod
    def parse(cls, text: object) -> DatumURI:
        """Return the datum URI that *text* is.

        Raises:
            InvalidURI: with the place of the fault.
        """
        return _Parser(text).of_kind(cls, "datum")


def parse_uri(text: object) -> ModelURI | DatasetURI | DatumURI:
    """Return the URI that *text* is: a whole one, with its scheme.

    Raises:
        InvalidURI: with the place of the fault.
    """
    return _Parser(text).uri()


def parse_ref(text: object, *, kind: Literal["version", "model", "any"] = "version") -> ModelURI:
    """Return the model or version that *text* refers to: a ``model://`` URI or a short form.

    ``churn/v3`` and ``churn/production`` are versions, ``churn`` is a model. A short form has no
    path. With *kind* "version" the result has a selector, with "model" it has none.

    Raises:
        InvalidURI: *text* is no such reference, or one of the other kind; the message says what to write.
    """
    return _Parser(text).ref(kind)


def parse_selector(text: object) -> Selector:
    """Return the selector that *text* is: ``v3``, ``3``, ``latest``, an alias, ``sha256:<64 hex>``.

    Raises:
        InvalidURI: it is none.
    """
    parser = _Parser(text)
    return parser.selector(0, len(parser.text))


def node_of(text: str) -> str:
    """Return the URI *text* without the path to a file in a version; what is no such URI is returned as it is.

    Never raises: lineage is drawn from whatever was written down.
    """
    if not text.startswith(("model://", "dataset://")):
        return text
    return "/".join(text.split("/", 4)[:4])


def is_moving(selector: Selector | None) -> bool:
    """Return whether *selector* may mean another version tomorrow: all but a number do."""
    return isinstance(selector, (Latest, Named, ByDigest))


def quote_path(path: str) -> str:
    """Return *path* as it stands in a URI: every byte but ``/`` and unreserved ones percent-encoded."""
    return "".join(chr(b) if b in _UNRESERVED or b == 0x2F else f"%{b:02X}" for b in path.encode())


class _Parser:
    """One text, with a method for each rule of the grammar; knows where each piece lies."""

    __slots__ = ("text",)

    def __init__(self, text: object) -> None:
        if not isinstance(text, str):
            raise InvalidURI(
                f"{shown(text)} is not a URI.", hint="Pass text such as 'model://customer-churn/v1'."
            )
        self.text = str.__str__(text)
        if len(self.text) > MAX_URI:
            raise InvalidURI(
                f"The URI {shown(self.text, 40)} has {len(self.text)} characters; {MAX_URI} are allowed."
            )

    def fault(self, why: str, start: int = 0, end: int | None = None, hint: str = "") -> InvalidURI:
        """Return the error that points at ``text[start:end]``, with passwords masked."""
        end = len(self.text) if end is None else end
        source = _masked(self.text)
        if source != self.text:
            start, end = 0, len(source)
        return InvalidURI(why, hint=hint, source=source, span=(start, max(end, start)))

    def of_kind(self, cls: type[T], scheme: str) -> T:
        uri = self.uri()
        if isinstance(uri, cls):
            return uri
        raise self.fault(f"A {scheme}:// URI is needed.", 0, self.text.find("://"))

    def uri(self) -> ModelURI | DatasetURI | DatumURI:
        """Uri = model-uri | dataset-uri | datum-uri."""
        scheme = self.text.partition("://")[0]
        if scheme not in _SCHEMES or not self.text.startswith(f"{scheme}://"):
            self.bad_scheme()
        start = len(scheme) + 3
        if scheme == "model":
            return self.model_uri(start)
        return self.dataset_uri(start) if scheme == "dataset" else self.datum_uri(start)

    def bad_scheme(self) -> NoReturn:
        """Say what is wrong with the beginning of a text that is no URI of ours."""
        text = self.text
        if text != text.strip():
            raise self.fault("A URI has no blanks around it.", hint="Remove them.")
        match = _SCHEME.match(text)
        if not match:
            raise self.fault("A URI starts with its scheme.", 0, 1, hint="Write model://<name>/<version>.")
        scheme, end = match.group(1), match.end()
        if scheme == "models":
            hint = "That is MLflow's scheme; write model://<name>/v1."
        elif scheme.lower() in _SCHEMES:
            raise self.fault(
                "The scheme is not well written.", 0, end, hint=f"Write {scheme.lower()}:// with two slashes."
            )
        else:
            hint = "Write model://, dataset:// or datum://."
        raise self.fault(f"The scheme {shown(scheme)} is not known.", 0, end, hint)

    def model_uri(self, start: int) -> ModelURI:
        """Model-uri = "model://" name "/" [ selector [ "/" path ] ]."""
        cut = self.text.find("/", start)
        if cut < 0:
            name = self.checked(check_name, start, len(self.text))
            raise self.fault(
                "Which version of the model is missing.",
                len(self.text),
                hint=f"Write model://{name}/latest, model://{name}/v1, or model://{name}/ for a new version.",
            )
        name = self.checked(check_name, start, cut)
        if cut + 1 == len(self.text):
            return ModelURI(name)
        end = self.until_slash(cut + 1)
        return ModelURI(name, self.selector(cut + 1, end), self.path(end))

    def dataset_uri(self, start: int) -> DatasetURI:
        """Dataset-uri = "dataset://" name "/" [ version-name [ "/" path ] ]."""
        cut = self.text.find("/", start)
        if cut < 0:
            name = self.checked(_dataset_name, start, len(self.text))
            raise self.fault(
                "Which version of the dataset is missing.",
                len(self.text),
                hint=f"Write dataset://{name}/<version>.",
            )
        name = self.checked(_dataset_name, start, cut)
        if cut + 1 == len(self.text):
            return DatasetURI(name)
        end = self.until_slash(cut + 1)
        return DatasetURI(name, self.checked(check_version_name, cut + 1, end), self.path(end))

    def datum_uri(self, start: int) -> DatumURI:
        """Datum-uri = "datum://" name."""
        return DatumURI(self.checked(_datum_id, start, len(self.text)))

    def ref(self, kind: str) -> ModelURI:
        """Ref = model-uri | name [ "/" selector ]."""
        if ":" in self.text.partition("/")[0]:
            uri = self.of_kind(ModelURI, "model")
        elif (cut := self.text.find("/")) < 0:
            uri = ModelURI(self.checked(check_name, 0, len(self.text)))
        else:
            name = self.checked(check_name, 0, cut)
            more = self.text.find("/", cut + 1)
            if more >= 0:
                raise self.fault(
                    "The short form of a version ends after the version.",
                    more,
                    hint=f"Write model://{name}/<version>/<path> for a file of it.",
                )
            uri = ModelURI(name, self.selector(cut + 1, len(self.text)))
        if kind == "version" and uri.selector is None:
            raise self.fault(
                "This names a model, and a version of it is needed.",
                len(self.text),
                hint=f"Write {uri}latest for the latest approved version, or {uri}v1, or an alias.",
            )
        if kind == "model" and uri.selector is not None:
            start = len("model://") if self.text.startswith("model://") else 0
            at = start + len(uri.name)
            raise self.fault(
                "This names a version, and a model is needed.", at, hint=f"Write {shown(uri.name)}."
            )
        return uri

    def selector(self, start: int, end: int) -> Selector:
        """Selector = [ "v" ] number | "latest" | alias | "sha256:" 64 hex."""
        text = self.text[start:end]
        if match := _NUMBER.fullmatch(text):
            number = int(match.group(1))
            return self.at(lambda: Number(number), start, end)
        if text == "latest":
            return Latest()
        if text.startswith("sha256:"):
            return self.at(lambda: ByDigest(text), start, end)
        if not text:
            raise self.fault(
                "The version is empty.", start, end + 1, hint="Write 'latest', 'v1' or an alias."
            )
        return self.at(lambda: Named(check_alias(text, "version or alias")), start, end)

    def path(self, slash: int) -> str | None:
        """Path = segment *( "/" segment ), from *slash* to the end; None at the end of the text."""
        if slash == len(self.text):
            return None
        start = slash + 1
        if start == len(self.text):
            raise self.fault("A URI does not end with a slash after the version.", slash, hint="Remove it.")
        segments = []
        at = start
        for piece in self.text[start:].split("/"):
            segments.append(self.segment(at, at + len(piece)))
            at += len(piece) + 1
        return self.at(lambda: check_path("/".join(segments)), start, len(self.text))

    def segment(self, start: int, end: int) -> str:
        """Segment = 1*( unreserved | "%" HEXDIG HEXDIG ), decoded once, as UTF-8."""
        piece = self.text[start:end]
        if not _SEGMENT.fullmatch(piece):
            bad = _BAD_IN_SEGMENT.search(piece)
            if bad is None:
                last = end == len(self.text)
                raise self.fault(
                    "A segment of the path is empty.",
                    start,
                    end,
                    hint=f"Remove the {'last' if last else 'second'} slash.",
                )
            where = start + bad.start()
            if bad.group() == "%":
                raise self.fault(
                    "A '%' is followed by two hexadecimal digits.",
                    where,
                    where + 3,
                    hint="A '%' itself is %25.",
                )
            code = "".join(f"%{b:02X}" for b in bad.group().encode("utf-8", "replace"))
            raise self.fault(
                f"{shown(bad.group())} stands percent-encoded in a path.",
                where,
                where + 1,
                hint=f"Write {code}.",
            )
        text = _decoded(piece)
        if text is None:
            raise self.fault("The percent-encoded bytes are not UTF-8.", start, end)
        if "/" in text:
            raise self.fault(
                "A '/' in the path is not percent-encoded.", start, end, hint="A file's name cannot have one."
            )
        return text

    def until_slash(self, start: int) -> int:
        end = self.text.find("/", start)
        return len(self.text) if end < 0 else end

    def checked(self, check: Callable[[object], str], start: int, end: int) -> str:
        return self.at(lambda: check(self.text[start:end]), start, end)

    def at(self, make: Callable[[], T], start: int, end: int) -> T:
        """Return what *make* makes; its InvalidName becomes an InvalidURI that points at the piece."""
        try:
            return make()
        except InvalidName as error:
            why, hint = error.message, error.hint
        # Outside the handler: a chained InvalidName would show what is masked here.
        piece = self.text[start:end]
        if _masked(self.text) != self.text:
            why, hint = "A URI has no user, password or port.", "Write model://<name>/<version>."
        elif "{" in piece:
            why, hint = "A placeholder in braces was not replaced.", "Fill it in before the URI is used."
        elif piece.strip().lower() == "latest" != piece:
            hint = "Write 'latest'."
        raise self.fault(why, start, end, hint)


def _decoded(piece: str) -> str | None:
    try:
        return unquote_to_bytes(piece).decode()
    except UnicodeDecodeError:
        return None


def _masked(text: str) -> str:
    """Return *text* without what may be a password or a token: errors are logged."""
    scheme, sep, rest = text.partition("://")
    if not sep:
        at = text.rfind("@")
        return "***" + text[at:] if ":" in text[: max(at, 0)] else text
    ours = scheme in _SCHEMES
    at = rest.rfind("@")
    if at >= 0 and (not ours or ":" in rest.partition("/")[0].partition("@")[0]):
        rest = "***" + rest[at:]
    if not ours:
        rest = re.sub(r"\?.*", "?***", rest, flags=re.DOTALL)
    return f"{scheme}{sep}{rest}"
