"""Secrets in what a run records, replaced by ``***``: in URLs, command lines, parameters and free text.

A name is cut into words (``hfToken``, ``hf_token`` and ``hf.token`` are *hf* and *token*), and judged by them:

- *strong*: ``password``, ``secret``, ``credential``, ``api_key``, ``access_key``, ``private_key`` and their kin,
  anywhere in the name. Text under it is masked whatever it says. A number stays only where the name
  goes on (``password_length=12``).
- *weak*: the name ends in ``token``, ``key`` or ``auth``. Text under it is masked; what reads as a number or a
  bool stays (``seed_key=3``), and so do the names that training code uses: ``pad_token``, ``label_key`` …
- all else stays: ``max_tokens``, ``tokenizer``, ``key_size``, ``top_k``, ``author``.

Names in the query of a URL are judged harder (``sig``, ``X-Amz-Credential``, ``session_id``): one such word is enough.
Nothing here raises on rubbish. It is a net under people's mistakes, not a proof: a password that is given
as a bare word is not known from another word, unless it has a well-known shape (``ghp_…``, ``AKIA…``).
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final
from urllib.parse import unquote

from modelhub_sdk.domain.values import Frozen, Opaque

__all__ = ["MASK", "command", "identity", "line", "mapping", "record", "text", "url"]

MASK: Final = "***"
"""What stands in the place of a secret."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MAX_DEPTH: Final = 64

_WORDS: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_]+")
_STRONG: Final = _set(
    "password passwords passwd passphrase passcode pwd secret secrets credential credentials cred creds "
    "authorization bearer"
)
_STRONG_PAIRS: Final = frozenset(
    (first, second)
    for first in ("api", "access", "account", "private", "encryption", "signing", "ssh", "deploy", "license")
    for second in ("key", "keys")
) | {(first, second) for first in ("api", "access", "auth", "refresh") for second in ("token", "tokens")}
_STRONG_ENDS: Final = re.compile(
    r"(password|passwd|passphrase|secret|(api|access|secret|private|auth|account)(key|token))s?$"
)
_WEAK: Final = frozenset(("token", "key", "auth", "pat", "jwt"))
# What stands before `token` and `key` in the parameters of training code, where neither is a secret.
_HARMLESS_BEFORE: Final = {
    "token": _set(
        "additional bos class cls decoder end eos eot first forced image last mask new next pad per prefix sep "
        "separator special start stop suffix unk unknown vocab word"
    ),
    "key": _set(
        "action audio batch caption class column feature features foreign group image input join label labels "
        "loss map mask metric monitor natural obs observation order output partition prediction primary public "
        "reward sort state target text unique"
    ),
}
_PASS_OF: Final = _set("admin db ftp http https mongo mysql pg postgres proxy redis root smtp user")
_PLAIN: Final = re.compile(
    r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|true|false|none|null|yes|no|on|off", re.IGNORECASE
)

_QUERY_WORDS: Final = _set("sig signature token tokens key keys auth jwt session sessionid sid pwd")
_QUERY_ENDS: Final = re.compile(
    r"(token|secret|passwd|password|passphrase|pwd|signature|credential|sess(ion)?id|accesskeyid"
    r"|(api|access|auth|secret|private|subscription|account|function)key)s?$"
)
# What signs a URL says nothing of the bytes behind it, and is another at each signing. Short names, which may mean
# something else, are taken for that only beside those that always stand with them.
_SIGNING: Final = ("x-amz-", "x-goog-")
_OLD_SIGNING: Final = _set("signature expires policy key-pair-id awsaccesskeyid googleaccessid")
_AZURE_SIGNING: Final = _set(
    "sig sv ss srt se sr sp st spr sip si skoid sktid skt ske sks skv sdd saoid suoid scid ses"
)
_SIGNED_WITH: Final = (
    (_set("signature key-pair-id"), _OLD_SIGNING),
    (_set("signature awsaccesskeyid"), _OLD_SIGNING),
    (_set("signature googleaccessid"), _OLD_SIGNING),
    (_set("sig sv"), _AZURE_SIGNING),
)
_ROUNDS: Final = 100_000  # so that a short secret is not found by trying
_QUERY_PIECE: Final = re.compile(r"([?&;#])([^=&;#?]+)=([^&;#]+)")
_USERINFO_INSIDE: Final = re.compile(r"//[^/@\s]*@")
_SCHEME: Final = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)*[A-Za-z][A-Za-z0-9+.-]*://")
_PORT: Final = re.compile(r":\d{0,5}$")
_BARE_USERINFO: Final = re.compile(r"[^\s/@:]+:[^\s/@]+@")
# A user there is no secret, and without it the address does not work; elsewhere a lone user may be a token.
_KEEPS_USER: Final = frozenset(("ssh", "git+ssh", "ssh+git", "sftp", "abfs", "abfss", "wasb", "wasbs", "az"))

_URL_IN_TEXT: Final = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{0,31}://[^\s'\"<>`]+")
_ASSIGNMENT: Final = re.compile(
    r"(?<![\w.-])(?P<name>[A-Za-z_][\w.-]{0,63})(?P<close>[\"']?)(?P<sign>\s{0,4}=\s{0,4}|\s{0,4}:\s{1,4}|:)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|(?:Bearer|Basic|Token|Digest)\s+[^\s'\"]+|[^\s,;&'\")\]}]+)"
)
_OPTION: Final = re.compile(
    r"(?<![^\s\"'=])-(?P<name>u|-?[A-Za-z][\w.-]+)(?P<gap>[ \t]+|=)"
    r"(?P<value>\"(?:[^\"\\]|\\.)*\"|'[^']*'|(?!--)[^\s;&|\"']+)"
)
_QUOTED_OPTION: Final = re.compile(
    r"(?P<quote>[\"'])(?P<option>--?(?P<name>[A-Za-z][\w.-]+)=)(?P<value>.+?)(?P=quote)"
)
_SCHEMED: Final = re.compile(r"\b(Bearer|Basic)\s+(?=[^\s'\"]*[\d=_.-])[^\s'\"]{8,}")
_SHAPES: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:gh[pousr]|github_pat|glpat|hf|xox[abp]|sk|pypi)[-_][A-Za-z0-9_-]{20,}"
    r"|A[KS]IA[0-9A-Z]{16}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*)"
)


def url(text: str) -> str:
    """Return a URL, or a git remote, without user and password and with ``***`` for secret query values.

    ``git@host:x.git`` stays, and so does a user without a password in the URLs of SSH and of Azure's
    containers (``ssh://git@host``, ``abfss://container@account``); all other users go, since
    ``https://<token>@host`` is written in the same way.
    """
    scheme = _SCHEME.match(text)
    if scheme is None:
        return _query(_BARE_USERINFO.sub("", text, count=1) if _BARE_USERINFO.match(text) else text)
    rest = text[scheme.end() :]
    user, rest = _split_user(rest)
    keep = user and ":" not in user and scheme[0].rpartition(":")[0].lower() in _KEEPS_USER
    return scheme[0] + (f"{user}@" if keep else "") + _query(rest)


def record(text: str) -> str:
    """Return the URL of an input as it is recorded: as `url`, and one from the web without what only signs it.

    A URL that is signed anew for each download stays the same so.
    """
    return url(_unsigned(text))


def identity(text: str) -> str:
    """Return what tells one URL from another, to be hashed and never shown: as `record`, but with secrets digested.

    ``?token=a`` and ``?token=b`` may be two people's files, though records show both as ``?token=***``.
    """

    def digested(match: re.Match[str]) -> str:
        shown = _query_piece(match)
        if shown == match[0]:
            return shown
        slow = hashlib.pbkdf2_hmac("sha256", match[3].encode("utf-8", "backslashreplace"), b"url", _ROUNDS)
        return f"{match[1]}{match[2]}={slow.hex()}"

    bare = _unsigned(text)
    scheme = _SCHEME.match(bare)
    if scheme is None:
        return _QUERY_PIECE.sub(digested, bare)
    return scheme[0] + _QUERY_PIECE.sub(digested, _split_user(bare[scheme.end() :])[1])


def command(argv: Sequence[str]) -> str:
    """Return *argv* as a line for a shell, with ``***`` for the values of secret options and variables.

    Both ``--api-key X`` and ``--api-key=X`` are seen, ``TOKEN=X``, ``-u user:password`` of curl, and what
    `text` sees within a word. Bytes that are no UTF-8 are written as escapes.
    """
    words: list[str] = []
    option = ""  # the option that the next word may be the value of
    for raw in argv:
        word = str(raw).encode("utf-8", "backslashreplace").decode()
        name, equals, value = word.partition("=")
        bare = name.lstrip("-+")
        if option and not word.startswith("--"):
            word = MASK if _hidden(option, word) else text(word)
            option = ""
        elif equals and re.fullmatch(r"[\w.-]+", bare):
            option = ""
            word = f"{name}={MASK}" if value and _hidden(bare, value) else f"{name}={text(value)}"
        else:
            option = bare if re.fullmatch(r"--?[A-Za-z][\w.-]+|-u", word) else ""
            word = text(word)
        words.append(word)
    return shlex.join(words)


def line(shell: str) -> str:
    """Return a line, or several, for a shell with secrets replaced as `command` replaces them.

    The line is not parsed: a value with quotes in the midst of it, or from a variable, is not known.
    """
    return text(_OPTION.sub(_option, _QUOTED_OPTION.sub(_quoted_option, shell)))


def mapping(params: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return *params* (plain values, see `modelhub_sdk.domain.values`) with ``***`` for secret values.

    Nested mappings and sequences are looked into, texts are passed through `text`. What stands under a
    strong name is masked whole. None and bools stay, numbers as the module says.
    """
    return {key: _value(_words_of(key), item, 0) for key, item in params.items()}


def text(text: str) -> str:
    """Return free text, such as the last line of an exception, with secrets replaced by ``***``.

    Seen are URLs, ``name=value``, ``'name': value``, ``password: value``, ``Authorization: Bearer …`` and
    tokens of well-known shapes.
    """
    text = _URL_IN_TEXT.sub(lambda match: url(match[0]), text)
    text = _ASSIGNMENT.sub(_assignment, text)
    text = _SCHEMED.sub(rf"\1 {MASK}", text)
    return _SHAPES.sub(MASK, text)


# --- Names ----------------------------------------------------------------------------------------


def _words_of(name: object) -> tuple[str, ...]:
    found = (word.lower() for word in _WORDS.findall(name)) if isinstance(name, str) else ()
    return tuple(word for word in found if not word.isdigit())  # `password2` is as secret as `password`


def _strength(words: tuple[str, ...]) -> str:
    """Return ``strong``, ``long`` (strong, but the name goes on), ``weak`` or an empty text."""
    if not words:
        return ""
    last = words[-1]
    before = words[-2] if len(words) > 1 else ""
    if last in _STRONG or _STRONG_ENDS.search(last) or (before, last) in _STRONG_PAIRS:
        return "strong"
    if any(word in _STRONG or _STRONG_ENDS.search(word) for word in words):
        return "long"
    if any(pair in _STRONG_PAIRS for pair in pairwise(words)):
        return "long"
    if last == "pass" and (not before or before in _PASS_OF):
        return "weak"
    return "weak" if last in _WEAK and before not in _HARMLESS_BEFORE.get(last, ()) else ""


def _hidden(name: str, value: str) -> bool:
    """Return whether *value*, as text, is to be masked under *name*."""
    if name == "u":  # curl -u user:password, wget and others alike
        return bool(re.fullmatch(r"[^:/\s]+:[^/\s]+", value))
    strength = _strength(_words_of(name))
    return strength == "strong" or (bool(strength) and not _PLAIN.fullmatch(value))


# --- Values ---------------------------------------------------------------------------------------


def _value(words: tuple[str, ...], value: Any, depth: int) -> Any:
    strength = _strength(words)
    if value is None or isinstance(value, bool) or value == "":
        return value
    if depth > _MAX_DEPTH:
        return MASK
    if isinstance(value, (int, float)):
        return MASK if strength == "strong" else value
    if isinstance(value, str):
        hidden = strength == "strong" or (strength and not _PLAIN.fullmatch(value))
        return MASK if hidden else text(value)
    if strength in ("strong", "long"):
        return MASK
    if isinstance(value, Mapping):
        content = {key: _value((*words, *_words_of(key)), item, depth + 1) for key, item in value.items()}
        return Frozen(content) if isinstance(value, Frozen) else content
    if isinstance(value, (list, tuple)):
        items = [_value(words, item, depth + 1) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if strength:
        return MASK
    return Opaque(value.type, text(value.text)) if isinstance(value, Opaque) else value


# --- URLs and text --------------------------------------------------------------------------------


def _split_user(rest: str) -> tuple[str, str]:
    """Return the user part, and what comes after it, of what comes after ``scheme://``."""
    cut = re.search(r"[/?#]", rest)
    authority = rest[: cut.start()] if cut else rest
    user, at, _ = authority.rpartition("@")
    if not at and cut and ":" in authority and not _PORT.search(authority) and "@" in rest:
        # A password with a bare slash in it: not a valid URL, and what people write.
        user = rest.rpartition("@")[0]
        return user, rest[len(user) + 1 :]
    return user, rest[len(user) + 1 :] if at else rest


def _query(rest: str) -> str:
    return _QUERY_PIECE.sub(_query_piece, rest)


def _query_piece(match: re.Match[str]) -> str:
    words, value = _words_of(unquote(match[2])), unquote(match[3])
    hidden = (
        any(word in _QUERY_WORDS or _QUERY_ENDS.search(word) for word in words)
        or _strength(words)
        or _USERINFO_INSIDE.search(value)
    )
    return f"{match[1]}{match[2]}={MASK}" if hidden else match[0]


def _unsigned(text: str) -> str:
    """Return a URL of the web without what signs it, and without its fragment, which no server sees."""
    if not re.match(r"https?://", text, re.IGNORECASE):
        return text
    place, mark, query = text.partition("#")[0].partition("?")
    pieces = query.split("&") if mark else []
    names = [unquote(piece.partition("=")[0]).lower() for piece in pieces]
    signing = {name for signs, those in _SIGNED_WITH if signs <= set(names) for name in those}
    kept = [
        piece
        for piece, name in zip(pieces, names, strict=True)
        if name not in signing and not name.startswith(_SIGNING)
    ]
    return place + ("?" + "&".join(kept) if kept else "")


def _option(match: re.Match[str]) -> str:
    value = match["value"]
    quote = value[0] if value[0] in "\"'" else ""
    inner = value[1:-1] if quote else value
    if not inner or not _hidden(match["name"].lstrip("-"), inner):
        return match[0]
    return f"-{match['name']}{match['gap']}{quote}{MASK}{quote}"


def _quoted_option(match: re.Match[str]) -> str:
    if not _hidden(match["name"], match["value"]):
        return match[0]
    return f"{match['quote']}{match['option']}{MASK}{match['quote']}"


def _assignment(match: re.Match[str]) -> str:
    value = match["value"]
    inner = value[1:-1] if value[0] in "\"'" else value
    strength = _strength(_words_of(match["name"]))
    if not inner or not _hidden(match["name"], inner):
        return match[0]
    if ":" in match["sign"] and strength == "weak" and not match["close"]:
        return match[0]  # "Unexpected key: …" is an explanation, not an assignment
    quote = value[0] if inner is not value else ""
    return f"{match['name']}{match['close']}{match['sign']}{quote}{MASK}{quote}"
