"""Where a person's name stands in texts: as the whole text, or among other words."""

from __future__ import annotations

import functools
import json
import re

from attrs import frozen

_ADDRESS = re.compile(r"[^<>]*<([^<>]+)>")


@frozen
class Person:
    """A person under one name: a login, an e-mail address, or a full name."""

    name: str

    def is_named_by(self, text: str) -> bool:
        """Return whether *text* is this person: ``jane@x``, ``user:jane@x``, ``Jane Doe <jane@x>``. Case counts."""
        address = _ADDRESS.fullmatch(text)
        return self.name in (text, text.removeprefix("user:"), address[1] if address else None)

    def is_in(self, text: str) -> bool:
        """Return whether the name stands in *text* as a word of its own, in any case, perhaps as JSON writes it."""
        return self._words.search(text) is not None

    def is_behind(self, text: str) -> bool:
        """Return whether *text*, recorded on a machine, names the person: also by the home of the login of an address."""
        return self.is_in(text) or (self._login is not None and _home(self._login).search(text) is not None)

    def is_host(self, text: str) -> bool:
        """Return whether the name of a host has the name, or the login of an address, as a word."""
        login = self._login
        return self.is_in(text) or (login is not None and len(login) > 2 and Person(login).is_in(text))

    def may_be_in(self, text: str) -> bool:
        """Return False when the name is certainly not in *text*; quicker than `is_in`."""
        folded = text.casefold()
        return any(spelling.casefold() in folded for spelling in (*self._spellings, self._login or self.name))

    def is_like(self, other: str) -> bool:
        """Return whether *other*, the name of a user, may be the same person under another name."""
        if self.is_named_by(other):
            return False
        mine, theirs = (name.casefold().partition("@")[0] for name in (self.name, other))
        return mine == theirs or self.is_in(other) or Person(other).is_in(self.name)

    def masked(self, text: str, pseudonym: str) -> str:
        """Return *text* with *pseudonym* in place of the name."""
        return self._words.sub(lambda _: pseudonym, text)

    @property
    def _login(self) -> str | None:
        """The part of an address before the ``@``: mostly the login too."""
        login, at, _ = self.name.partition("@")
        return login if at and login else None

    @property
    def _spellings(self) -> tuple[str, ...]:
        return self.name, json.dumps(self.name, ensure_ascii=False)[1:-1]

    @property
    def _words(self) -> re.Pattern[str]:
        return _words(self._spellings)


@functools.lru_cache(maxsize=64)
def _words(spellings: tuple[str, ...]) -> re.Pattern[str]:
    either = "|".join(re.escape(spelling) for spelling in sorted(set(spellings), key=len, reverse=True))
    return re.compile(rf"(?<![^\W_])(?:{either})(?![^\W_])", re.IGNORECASE)


@functools.lru_cache(maxsize=64)
def _home(login: str) -> re.Pattern[str]:
    return re.compile(rf"(?:(?:home|Users)[/\\]+|~){re.escape(login)}(?![^\W_])", re.IGNORECASE)


__all__ = ["Person"]
