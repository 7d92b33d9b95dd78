"""Names, tags, users, text and paths: what may be written, and what is refused and how."""

from __future__ import annotations

import pickle
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelhub_sdk.domain import names
from modelhub_sdk.domain.names import (
    check_actor,
    check_alias,
    check_name,
    check_number,
    check_path,
    check_paths,
    check_tag,
    check_text,
    check_version_name,
)
from modelhub_sdk.errors import InvalidName, ModelHubError
from tests.support.hostile import Case, cases, refusal

ALPHABET = "abcz019._-"
CHECKS = [check_name, check_alias, check_version_name, check_tag, check_actor, check_path]
# Text with what breaks things, on purpose: any code point, surrogates included, and the near misses.
NASTY = st.text(
    st.one_of(st.characters(), st.sampled_from("./\\:%~ \x00\n\u202e\u200b\ud800aA0-_")), max_size=40
)


class Liar(str):
    """Text that shows something else than it holds."""

    def __str__(self) -> str:
        return "../x"

    def __len__(self) -> int:
        return 1


def outcome(check, value) -> str:
    """Return whether *check* takes *value*; any error but a typed one fails the test."""
    error = refusal(check, value, InvalidName)
    assert error is None or len(str(error)) < 600
    assert error is None or str(error).isprintable()
    return "accept" if error is None else "reject"


# --- the catalogue


@pytest.mark.parametrize("case", cases("model_name"))
def test_hostile_model_names(case: Case):
    """Each hostile name is refused or taken as the catalogue says."""
    assert case.allows(outcome(check_name, case.value)), case.why


ELSEWHERE = {
    "artifact_path-049": "needs the set: test_twins",
    "artifact_path-051": "needs the set: test_duplicate",
    "artifact_path-052": "the path is fine; that it is a sidecar is for whoever collects the files",
    "artifact_path-064": "the path is fine; that nothing unpickles is for the resolver",
}


@pytest.mark.parametrize("case", cases("artifact_path"))
def test_hostile_paths(case: Case):
    """Each hostile path is refused or taken as the catalogue says."""
    found = outcome(check_path, case.value)
    if case.id not in ELSEWHERE and case.setup is None:
        assert case.allows(found), case.why


@pytest.mark.parametrize("case", cases("audit_text"))
def test_hostile_users(case: Case):
    """Each hostile user is refused or taken as the catalogue says; a case twin is told apart elsewhere."""
    if case.expect != "neutralise":
        assert case.allows(outcome(check_actor, case.value)), case.why


# --- names


@pytest.mark.parametrize("good", ["a", "0", "customer-churn", "a.b_c-d", "a" * 128, "v3", "index.json", "3"])
def test_good_names(good):
    """Lower-case ASCII letters, digits, '.', '_', '-'; 1 to 128 characters; first and last alphanumeric."""
    assert check_name(good) == good


@pytest.mark.parametrize(
    ("bad", "near"),
    [
        ("Customer Churn", "customer-churn"),
        ("café", "cafe"),
        ("a..b", "a.b"),
        ("model\n", "model"),
        ("-rf", "rf"),
        ("con", "con-model"),
        ("com1.json", "com1-model.json"),
        ("a" * 200, "a" * 128),
        ("ﬁnance", "finance"),
        ("сhurn", ""),
        ("%2e%2e", ""),
        ("..", ""),
        ("", ""),
        ("Latest", ""),
    ],
)
def test_nearest_good_name(bad, near):
    """Anything else is refused with the nearest good name, and never with a guess."""
    with pytest.raises(InvalidName) as caught:
        check_name(bad)
    assert caught.value.nearest == near
    assert near in str(caught.value)


@pytest.mark.parametrize("reserved", ["latest", "con", "nul", "aux.x", "lpt9", "com1", "prn.tar.gz"])
def test_reserved_names(reserved):
    """`latest` and the device names of Windows are refused."""
    with pytest.raises(InvalidName):
        check_name(reserved)


@given(st.text(ALPHABET, max_size=132))
def test_the_grammar_of_names(text):
    """The check agrees with the sentence in the design, written out once more."""
    good = (
        1 <= len(text) <= 128
        and set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
        and text[0].isalnum()
        and text[-1].isalnum()
        and ".." not in text
    )
    assert (outcome(check_name, text) == "accept") == good


@given(NASTY)
def test_the_nearest_name_is_good(text):
    """A name that an error proposes can be used."""
    error = refusal(check_name, text, InvalidName)
    if error is not None and error.nearest:
        assert check_name(error.nearest) == error.nearest


@pytest.mark.parametrize(
    "like_a_number", ["3", "v3", "v03", "v0", "1.0", "v1.2.3", "1e3", "v1e3", "1_000", "0x1f", "v0b1"]
)
def test_alias_like_a_version(like_a_number):
    """An alias cannot look like a version; a model can be called so."""
    with pytest.raises(InvalidName, match="version number"):
        check_alias(like_a_number)
    assert check_name(like_a_number) == like_a_number


@pytest.mark.parametrize("word", ["latest", "null", "none", "nan", "undefined", "true"])
def test_alias_like_nothing(word):
    """An alias cannot be `latest`, nor what a program writes for a missing value."""
    with pytest.raises(InvalidName):
        check_alias(word)


@pytest.mark.parametrize(
    "good", ["production", "champion", "v", "v3-rc", "2024-01-15", "1st", "nightly.2", "e3"]
)
def test_good_aliases(good):
    """Words are aliases, and dates, and what merely starts with a number."""
    assert check_alias(good) == good


@pytest.mark.parametrize("number", [1, 2, 2**31 - 1])
def test_good_numbers(number):
    """Version numbers start at 1 and end with the 32-bit integers."""
    assert check_number(number) == number


@pytest.mark.parametrize("bad", [True, False, 0, -1, 2**31, 1.0, "1", None, float("nan")])
def test_bad_numbers(bad):
    """A bool, a float and text are no numbers of versions."""
    with pytest.raises(InvalidName):
        check_number(bad)


def test_huge_number():
    """A number that Python would not even print is refused with a typed error."""
    with pytest.raises(InvalidName, match="bits"):
        check_number(10**5000)


@pytest.mark.parametrize(
    "seen",
    [
        "v1",
        "1734711836",
        "1752839634.374847",
        "20240912-101500",
        "project_016b8e3f-f22c-c0ac-0000-0123456789ab",
        "latest",
        "Final",
    ],
)
def test_dataset_version_names(seen):
    """The names of dataset versions that are seen in the wild can be used."""
    assert check_version_name(seen) == seen


@pytest.mark.parametrize("bad", ["", "a b", "a/b", "..", "a..b", "-a", "a%20b", "é", "con", "x" * 129, None])
def test_bad_dataset_version_names(bad):
    """What would need escaping in a URI, or is no file name, is no name of a dataset version."""
    with pytest.raises(InvalidName):
        check_version_name(bad)


# --- what every check does


@pytest.mark.parametrize("check", [*CHECKS, lambda text: check_text(text, "note")])
@pytest.mark.parametrize("wrong", [None, 1, True, b"churn", ["churn"], {"a": 1}, object(), float("nan")])
def test_not_text(check, wrong):
    """What is no text is refused by its type, and not shown."""
    with pytest.raises(InvalidName, match="not text"):
        check(wrong)


@pytest.mark.parametrize("check", [*CHECKS, lambda text: check_text(text, "note")])
def test_a_subclass_of_text_cannot_lie(check):
    """The characters that were checked are the ones that are used: a plain str comes back."""
    found = check(Liar("churn"))
    assert type(found) is str
    assert found == "churn"
    assert f"{found}" == "churn"


@pytest.mark.parametrize("check", CHECKS)
@given(text=NASTY)
@example(text="\ud800")
@example(text="")
def test_checked_as_it_is(check, text):
    """Nothing is normalised: a check returns the very text, or refuses it with a typed error."""
    if outcome(check, text) == "accept":
        assert check(text) == text


@pytest.mark.parametrize("check", [*CHECKS, lambda text: check_text(text, "note")])
@pytest.mark.parametrize(
    "text", ["(a" * 5_000_000, "a" * 10_000_000, "é" * 3_000_000, " " * 5_000_000], ids="abcd"
)
def test_huge_text(check, text):
    """Ten megabytes are refused at once, with a short message."""
    start = time.process_time()
    with pytest.raises(InvalidName) as caught:
        check(text)
    assert time.process_time() - start < 0.5
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("check", CHECKS)
def test_errors_pickle(check):
    """A refusal survives pickling, with its facts."""
    with pytest.raises(InvalidName) as caught:
        check("A\n")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.facts) == (str(caught.value), caught.value.facts)
    assert isinstance(again, ModelHubError)
    assert isinstance(again, ValueError)


# --- tags, users, text


@pytest.mark.parametrize(
    "good", ["prod", "Größe: XL", "a/b", "🧪", "👩‍🔬", "نمونه‌ها", "%", "x" * 128, "=1+1"]
)
def test_good_tags(good):
    """A tag is free text of any script on one line."""
    assert check_tag(good) == good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ",
        " a",
        "a ",
        "a\n",
        "a\tb",
        "\x1b[31m",
        "\u202eabc",
        "a\u2066",
        "a\u200b",
        "a\x85b",
        "a\u2028b",
        "\ud800",
        "a\ufeff",
        "x" * 129,
        "a\xa0",
    ],
)
def test_bad_tags(bad):
    """Controls, line ends, bidirectional and invisible characters and blanks at the edge are refused."""
    with pytest.raises(InvalidName):
        check_tag(bad)


@pytest.mark.parametrize(
    "good", ["sofia", "sofia@example.org", "team:risk", "Sofía Núñez", "uid:1000", "DOM\\x"]
)
def test_good_users(good):
    """Users are names, addresses, teams and ids."""
    assert check_actor(good) == good


@pytest.mark.parametrize(
    "bad",
    ["system", "System", "SYSTEM", "so\u200dfia", "sofia\u200b", "\u202eaifos", "a\nb", "", " a", "x" * 257],
)
def test_bad_users(bad):
    """`system` is reserved in any case; an invisible twin of a user is refused."""
    with pytest.raises(InvalidName):
        check_actor(bad)


@pytest.mark.parametrize(
    "good", ["", "one\ntwo\r\n\tthree", "a" * 100_000, "👩‍🔬 \u202e", "'; DROP TABLE x; --"]
)
def test_good_text(good):
    """Free text may have lines, controls and anything that UTF-8 and every database keep."""
    assert check_text(good, "note") == good


@pytest.mark.parametrize("bad", ["\x00", "a\ud800", "\udcff", "a" * 100_001])
def test_bad_text(bad):
    """A NUL and half a surrogate pair cannot be kept; more than the limit is refused."""
    with pytest.raises(InvalidName, match="note"):
        check_text(bad, "note")


def test_limit_of_text():
    """The limit is the caller's."""
    assert check_text("abc", "x", 3) == "abc"
    with pytest.raises(InvalidName):
        check_text("abcd", "x", 3)


# --- paths


@pytest.mark.parametrize(
    "good",
    [
        "model.pkl",
        "weights/part-1.bin",
        "notes (final) v2.txt",
        "a/b/c",
        "é/ü.bin",
        "100%20.txt",
        "50%",
        "~",
        ".env",
        "con1",
        "console",
        "a=1,b=2+c",
        "x" * 255,
        "/".join(["d" * 203] * 5),
        "d/" * 255 + "f",
        "model.pkl.lock",
    ],
)
def test_good_paths(good):
    """A relative path with '/' between segments, in its one spelling, within the limits."""
    assert check_path(good) == good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        ".",
        "..",
        "/a",
        "a/",
        "a//b",
        "./a",
        "a/.",
        "a/..",
        "../a",
        "a\\b",
        "C:a",
        "a:b",
        "a*",
        "a?",
        'a"',
        "a<",
        "a|",
        "a.",
        "a ",
        "a /b",
        "b./c",
        "con",
        "a/CON.txt",
        "Nul",
        "com¹",
        "aux .txt",
        "conin$",
        ".git/x",
        "a/.GIT/config",
        "a\x00",
        "a\nb",
        "a\x7f",
        "a\u2028",
        "a\u202eb",
        "a\u200b",
        "\ud800",
        "%2e%2e/x",
        "..%2fx",
        "a%00",
        "a%5Cb",
        "x" * 256,
        "é" * 128,
        "/".join(["d" * 200] * 6),
        "d/" * 256 + "f",
        "..%c0%afx",
        "%252e",
    ],
)
def test_bad_paths(bad):
    """What POSIX, Windows, fsspec or a careless decoder would read as something else is refused."""
    with pytest.raises(InvalidName):
        check_path(bad)


@given(NASTY)
def test_a_good_path_stays_inside(text):
    """A checked path, joined to a folder by either rule set, is below that folder."""
    import ntpath
    import posixpath

    if outcome(check_path, text) == "reject":
        return
    for rules, root in ((posixpath, "/r"), (ntpath, "C:\\r")):
        joined = rules.normpath(rules.join(root, text))
        assert joined == rules.join(root, *text.split("/"))
        assert joined.startswith(root + rules.sep)


def test_limit_of_a_path_is_in_bytes():
    """1,024 bytes fit, 1,025 do not, however many characters they are."""
    fits = "/".join(["é" * 127] * 4) + "/abc"
    assert len(fits.encode()) == 1023
    assert check_path(fits + "d") == fits + "d"
    with pytest.raises(InvalidName, match="1024 bytes"):
        check_path(fits + "é")


def test_duplicate():
    """The same path twice is refused."""
    with pytest.raises(InvalidName, match="twice"):
        check_paths(["a/model.pkl", "b", "a/model.pkl"])


@pytest.mark.parametrize(
    "paths", [["café.bin", "cafe\u0301.bin"], ["café/a", "cafe\u0301/b"], ["x/café", "y", "x/cafe\u0301/z"]]
)
def test_twins(paths):
    """Paths or folders that differ only in how Unicode composes them are refused, in any order."""
    for order in (paths, paths[::-1]):
        with pytest.raises(InvalidName):
            check_paths(order)


@pytest.mark.parametrize("paths", [["a", "a/b"], ["a/b/c/d", "x", "a/b"], ["a/b", "a/b/c"]])
def test_file_and_folder(paths):
    """A path that is also the folder of another is refused, in any order."""
    for order in (paths, paths[::-1]):
        with pytest.raises(InvalidName, match="folder"):
            check_paths(order)


@given(st.lists(st.text("ab/", min_size=1, max_size=5).filter(lambda t: outcome(check_path, t) == "accept")))
def test_sets_of_paths(paths):
    """A set is fine exactly if no path is there twice or is the folder of another."""
    clash = len(set(paths)) < len(paths) or any(
        a != b and b.startswith(a + "/") for a in paths for b in paths
    )
    assert (outcome(check_paths, paths) == "reject") == clash


def test_many_paths_are_quick():
    """A hundred thousand paths in deep folders take less than two seconds."""
    paths = [f"{'d/' * 20}x{n % 1000}/f{n}" for n in range(100_000)]
    start = time.process_time()
    check_paths(paths)
    assert time.process_time() - start < 2


def test_everything_public_is_listed():
    """`__all__` names every check and limit."""
    public = {n for n in vars(names) if n.startswith(("check_", "MAX_"))}
    assert public == set(names.__all__)
