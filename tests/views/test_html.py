"""HTML for notebooks: complete, self-contained, and never more than what was meant."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelhub_sdk.domain.compare import compare
from modelhub_sdk.domain.entities import (
    AuditRecord,
    File,
    IngestReport,
    Listing,
    Model,
    ModelVersion,
    Verification,
)
from modelhub_sdk.domain.values import Frozen, normalise
from modelhub_sdk.views import html
from tests.support.samples import T0, cases, digest, everything, version

TAGS = {
    *(
        "style",
        "section",
        "header",
        "h3",
        "h4",
        "p",
        "div",
        "span",
        "b",
        "i",
        "bdi",
        "code",
        "small",
        "strong",
    ),
    *("time", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "details", "summary", "blockquote"),
    *("footer", "br"),
}
ATTRIBUTES = {"class", "title", "datetime", "scope", "colspan", "dir", "role", "style"}
VOID = {"br"}


class Reader(HTMLParser):
    """Collects what a browser would see, and checks that the elements are ours and well nested."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.style = ""

    def handle_starttag(self, tag, attrs):
        assert tag in TAGS, tag
        for name, value in attrs:
            assert name in ATTRIBUTES, name
            if name == "style":
                assert value == "height:.8em" or value.removeprefix("flex:").isdigit(), value
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["style"]:
            self.style += data
        else:
            self.seen.append(data)

    def handle_comment(self, data):
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    for outside in ("http", "url(", "@import", "src", "//"):
        assert outside not in reader.style
    return "".join(reader.seen)


def shown_with(words):
    things = everything(words)
    return [*things, compare([things[0], version(9)])]


@pytest.mark.parametrize(
    "case",
    [c for name in ("markdown_doc", "audit_text", "search_filter") for c in cases(name) if "input" in c],
    ids=lambda case: case["id"],
)
def test_catalogue(case):
    """Hostile texts in every place of every value stay text: no element or attribute of theirs appears."""
    for thing in shown_with(case["input"] or "x"):
        page = html.render(thing)
        read(page)
        assert "<script" not in page.lower()


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
@settings(max_examples=40)
def test_everything_is_escaped(words):
    """Whatever a user typed: our elements only, well nested, no control characters."""
    for thing in shown_with(words):
        page = html.render(thing)
        read(page)
        assert all(c.isprintable() or c in "\n\t" for c in page)


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zs", "Zl", "Zp", "Co", "Cn"]), min_size=1)
)
@settings(max_examples=60)
def test_text_is_shown_letter_by_letter(words):
    """What a reader sees is what was typed, not twice unescaped and not half."""
    assert words[:200] in read(html.render(version(note=words[:200])))


def test_entities_are_not_decoded_twice():
    """&lt; in a note is shown as &lt;."""
    assert "&lt;b&gt;" in read(html.render(version(note="&lt;b&gt;")))


def test_escaping_is_for_attributes_too():
    """Quotes cannot end an attribute."""
    assert html.tag("a", class_='x" onclick="y') == '<a class="x&quot; onclick=&quot;y"></a>'
    assert html.esc("\x1b\u202e<'\">&") == "\\x1b\\u202e&lt;&#x27;&quot;&gt;&amp;"


def test_a_version():
    """All that a version says of itself is on its card."""
    seen = read(html.render(everything("Words")[0]))
    for piece in ("approved", "0.5", "Words", "Evaluation", "Comments", "Attachments", "UTC by"):
        assert piece in seen


def test_a_model():
    """Title, counts, aliases, latest."""
    seen = read(html.render(everything("Words")[1]))
    for piece in ("Words", "latest v2", "2 versions", "1 approved", "champion"):
        assert piece in seen


def test_a_model_without_versions():
    """Emptiness is said."""
    model = Model(
        "m", None, None, Frozen(), (), None, (), T0, None, T0, 1, None, 0, Frozen(), Frozen()
    )  # fmt: skip
    seen = read(html.render(model))
    assert "No versions yet." in seen
    assert "(redacted)" in seen


def test_a_comparison():
    """Best, differences with their sign, and equal rows are marked."""
    page = html.render(compare([version(1), version(2)]))
    assert page.count('class="best"') == 2
    assert 'class="delta up">+0.01' in page
    assert 'class="delta up">−0.01' in page
    assert '<tr class="same">' in page


def test_long_numbers_keep_all_digits_in_reach():
    """A cell is short; the tooltip has every digit."""
    page = html.render(version(metrics=normalise({"auc": 0.123456789012, "nan": math.nan, "none": None})))
    assert 'title="0.123456789012">0.123457<' in page
    assert ">NaN<" in page


def test_many_of_everything_stays_small():
    """Ten thousand files or metrics neither freeze a browser nor hide that there are more."""
    files = tuple(File(f"shard-{i:05}.bin", 1, digest(0)) for i in range(10_000))
    metrics = Frozen({f"m{i}": i / 7 for i in range(10_000)})
    page = html.render(version(files=files, metrics=metrics))
    assert len(page) < 1_500_000
    seen = read(page)
    assert "9,960 more files" in seen
    assert "8,000 that are not shown" in seen
    assert len(html.render(compare([version(1, metrics=metrics), version(2)]))) < 1_000_000


def test_long_text_is_cut():
    """A megabyte of description does not become a megabyte of page."""
    assert len(html.render(version(description="x" * 1_000_000))) < 50_000


def test_listings():
    """Of versions, models, audit records, anything; empty ones and pages of more."""
    assert "Nothing found." in read(html.render(Listing([])))
    assert "the first 2 are shown" in read(html.render(Listing([version(1), version(2)], total=9)))
    assert "a.bin" in read(html.render(Listing([File("a.bin", 1, digest(1))])))
    assert "2 items" in read(html.render(Listing([version(1), everything("x")[1]])))


def test_verification_and_report():
    """Good and bad news look different."""
    assert "intact" in read(html.render(Verification(True, (), 1, 2, "h")))
    assert "1 problem" in read(html.render(everything("gone")[4]))
    assert "nothing new" in read(html.render(IngestReport((), repeated=True)))


def test_other_objects():
    """Anything else is escaped text."""
    assert "<b>" in read(html.render("<b>"))


def test_values_show_themselves():
    """Notebooks ask the values."""
    for thing in everything("x"):
        read(thing._repr_html_())


def test_both_themes_are_there():
    """Light and dark, by the reader's system and by the notebook's theme; text and background go together."""
    page = html.render(version())
    for piece in ("prefers-color-scheme:dark", "data-jp-theme-light", "vscode-dark", "background:var(--bg)"):
        assert piece in page


def test_kinds_have_renderers():
    """The kinds that users see most have a card of their own."""
    kinds = {kind for kind, _ in html._RENDERERS}
    assert {Model, ModelVersion, AuditRecord, Listing, Verification, IngestReport} <= kinds
