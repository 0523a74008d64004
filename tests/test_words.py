"""Words that were replaced by plain English or by the field's terms do not come back.

A phrase moves from `IN_HELP` to `IN_PACKAGE` to `GONE` as soon as its last use there is rewritten.
"""

from __future__ import annotations

import re

import pytest
from test_docs import HELP, PAGES, ROOT

# Nowhere: pages, help texts, the package's sources.
GONE = (
    "beside ours",
    "crew",
    "everything random",
    "gets no time",
    "leaves out the rest",
    "mend",
    "mended",
    "mending",
    "mends",
    "none that shows",
    "quiesce",
    "said not to be",
    "says little",
    "the same company",
)
# Not in pages and help texts; sources still have them.
IN_PACKAGE = (
    "a slip",
    "a yardstick",
    "anew",
    "at fault",
    "begin to learn",
    "by luck",
    "every which",
    "goes on its way",
    "if anything was",
    "in thought",
    "it learns of",
    "laid end to end",
    "lies elsewhere",
    "may be another's",
    "no words for",
    "not ours",
    "time was up",
    "to be had",
    "told",
    "vouches",
    "whoever",
    "work is whole",
)
# Not in pages; help texts still have them.
IN_HELP = (
    "again and again",
    "laid out",
    "mistakes that people make",
    "ours",
    "that are here",
    "that suffices",
)
# Between the lines of a comment or of a text in quotes.
BREAK = re.compile(r"""["']?\s*\n\s*(?:\#\s?|//\s?|[fr]?["'])?""")


def normalized(text):
    """Put a text on one line, so that a phrase over a line break is found."""
    return re.sub(r"\s+", " ", BREAK.sub(" ", text)).lower()


PAGE_TEXTS = {page.name: normalized(page.read_text()) for page in PAGES}
HELP_TEXTS = {f"help {number}": normalized(text) for number, text in enumerate(HELP)}
SOURCES = {
    str(path.relative_to(ROOT)): normalized(path.read_text())
    for suffix in ("py", "cu")
    for path in (ROOT / "adadelta_cli").rglob(f"*.{suffix}")
}


def uses(phrase, texts):
    """List the texts that have a phrase, with what stands around it."""
    pattern = re.compile(rf"\b{re.escape(phrase)}\b")
    return [
        f"{name}: {text[max(found.start() - 40, 0) : found.end() + 40]}"
        for name, text in texts.items()
        for found in pattern.finditer(text)
    ]


@pytest.mark.parametrize("phrase", GONE)
def test_gone_words_stay_away(phrase):
    """Neither pages nor help texts nor sources have them."""
    assert not uses(phrase, PAGE_TEXTS | HELP_TEXTS | SOURCES)


@pytest.mark.parametrize("phrase", IN_PACKAGE)
def test_words_stay_out_of_pages_and_help(phrase):
    """What a user reads does not have them."""
    assert not uses(phrase, PAGE_TEXTS | HELP_TEXTS)


@pytest.mark.parametrize("phrase", IN_HELP)
def test_words_stay_out_of_pages(phrase):
    """The pages do not have them."""
    assert not uses(phrase, PAGE_TEXTS)


@pytest.mark.parametrize(
    "text", ["It WAS mended.", "# it was\n    # mended, then", '"it was "\n    f"mended"']
)
def test_a_phrase_is_found(text):
    """In prose, in a comment and in a text in quotes, over line breaks and in any case."""
    assert uses("was mended", {"": normalized(text)})
    assert not uses("mend", {"": normalized(text)})


def test_there_are_texts_to_search():
    """Pages, help texts and sources were found, each with words that must be there."""
    assert uses("fused step", PAGE_TEXTS)
    assert uses("adadelta run mlp", HELP_TEXTS)
    assert uses("def main", SOURCES)
