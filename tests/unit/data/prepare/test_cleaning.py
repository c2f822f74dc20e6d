"""What cleaning does to characters, pages, languages, poor text and personal data."""

import json
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document
from datatrove.utils.text import split_into_sentences, split_into_words
from prepare_stand_ins import job_of, prose

from flame.data.prepare.cleaning.filters import cleaning_steps
from flame.data.prepare.cleaning.language import identifier
from flame.data.prepare.cleaning.normalise import extract, normalise
from flame.data.prepare.cleaning.options import Normalise, Pii
from flame.data.prepare.cleaning.pii import mask
from flame.data.prepare.cleaning.words import WORDS, PlainWords
from flame.data.prepare.reading.rows import MARKUP
from flame.data.prepare.reporting.tally import Counting
from flame.errors import ConfigError

PAGE = """<html><head><title>T</title><script>var tracked = 1;</script></head><body>
<nav><a href="/">Home</a> <a href="/about">About us</a></nav>
<article><h1>Ladders</h1><p>{first}</p><p>{second}</p></article>
<footer>Copyright 2020, all rights reserved</footer></body></html>"""


def clean(tmp_path: Path, texts: list[str], metadata: Any = None, **settings: Any) -> tuple[list[str], dict]:
    """Runs the cleaning steps over texts; returns what is left, and reason -> count by step."""
    inputs = [{"path": "x", "name": "x", "skip": settings.pop("skip", [])}]
    job = job_of({"inputs": inputs, "output.folder": tmp_path / "out", **settings})
    data: Any = [
        Document(text, str(number), metadata={"source": "x", **(metadata or {})}) for number, text in enumerate(texts)
    ]
    notes = tmp_path / "notes"
    for step in cleaning_steps(job, lambda name: Counting(name, notes / name)):
        data = step.run(data)
    left = [document.text for document in data]
    dropped = {
        f"{path.parent.name}: {reason}": counts["x"][0]
        for path in notes.rglob("00000.json")
        for reason, counts in json.loads(path.read_text())["dropped"].items()
    }
    return left, dropped


def test_good_prose_passes_every_filter_unchanged(tmp_path: Path) -> None:
    texts = [prose(seed) for seed in range(20)]
    assert clean(tmp_path, texts) == (texts, {})


@pytest.mark.parametrize(
    "text, reason",
    [
        ("Too short to say anything.", "gopher_quality: too few words"),
        ("\n".join(f"{line}\n\n{line}" for line in [prose(1, 3)] * 4), "gopher_repetition: repeated paragraphs"),
        (" ".join(["ab", "cd"] * 60), "gopher_quality: words too short"),
        (prose(2) + "\nfunction f() { return 1; } and that is all.", "c4: curly bracket"),
        (prose(3) + "\nLorem ipsum dolor sit amet.", "c4: lorem ipsum"),
        (prose(4).replace("\n", " "), "c4: too few sentences"),
        (
            prose(6, 20).replace(".", ""),
            "fineweb: too few lines with punctuation",
        ),
    ],
)
def test_poor_text_is_dropped_for_its_reason(text: str, reason: str, tmp_path: Path) -> None:
    settings = {"filters.c4.min_sentences": 13} if "sentences" in reason else {}
    left, dropped = clean(tmp_path, [text, prose(99, 20)], **settings)
    assert left == [prose(99, 20)] and dropped == {reason: 1}


def test_an_input_is_spared_the_filters_it_names(tmp_path: Path) -> None:
    code = "def f():\n    return {}\n"
    assert clean(tmp_path, [code], skip=["filters"]) == ([code.strip("\n")], {})
    assert clean(tmp_path, [code])[0] == []


def test_thresholds_come_from_the_job(tmp_path: Path) -> None:
    text = "Of the people and that children with bread have always returned together to the quiet river before winter."
    assert clean(tmp_path, [text])[0] == []
    assert clean(
        tmp_path,
        [text],
        **{
            "filters.gopher_repetition.top_n_grams": [0.2, 0.2, 0.2],
            "filters.gopher_quality.min_words": 15,
            "filters.c4.min_sentences": 1,
        },
    )[0] == [text]


@pytest.mark.parametrize("name", ["gopher_quality", "gopher_repetition", "c4", "fineweb"])
def test_strange_text_breaks_no_filter(name: str, tmp_path: Path) -> None:
    others = {
        f"filters.{other}.enable": other == name for other in ("gopher_quality", "gopher_repetition", "c4", "fineweb")
    }
    strange = [
        ".",
        "\u200b",
        "a" * 10_000,
        "\n\n.\n\n",
        "☃" * 50,
        "\x00\x01",
        "  x  ",
        "«»",
        "。" * 30,
        "- \n- \n- ",
        "\ufffd",
    ]
    left, dropped = clean(tmp_path, strange, **others, **{"filters.gopher_quality.min_words": 0})
    assert len(left) + sum(dropped.values()) == len(strange)


def test_characters_and_line_ends_take_one_form() -> None:
    options = Normalise()
    assert normalise("cafe\u0301\r\nschÃ¶n  \rend\t\n\n", options) == "café\nschön\nend"
    assert normalise("“curly” ﬁ １２", options) == "“curly” ﬁ １２"
    plain = "def f(x):\n\treturn x & 1\n"
    assert normalise(plain, options) == plain.strip("\n")
    off = Normalise(mojibake=False, unicode="", line_ends=False)
    assert normalise("cafe\u0301\r\nschÃ¶n  ", off) == "cafe\u0301\r\nschÃ¶n  "


def extractors() -> list[str]:
    try:
        import trafilatura  # noqa: F401
    except ImportError:  # it does not name all it needs
        return ["inscriptis"]
    return ["inscriptis", "trafilatura"]


@pytest.mark.parametrize("how", extractors())
def test_a_page_becomes_its_text(how: str, tmp_path: Path) -> None:
    page = PAGE.format(first=prose(1).replace("\n", " "), second=prose(2).replace("\n", " "))
    [text], _ = clean(tmp_path, [page], {MARKUP: "html"}, **{"normalise.html": how})
    assert prose(1).splitlines()[0] in text and "tracked" not in text and "<p>" not in text
    assert ("About us" in text) == (how == "inscriptis")


@pytest.mark.parametrize("how", extractors())
@pytest.mark.parametrize(
    "page", ["", "<", "<html></html>", "\x00", "<p", "<![CDATA[", "<" * 3000, "<div>" * 3000, "&#0;"]
)
def test_what_is_hardly_a_page_is_text_or_nothing(how: str, page: str) -> None:
    assert extract(page, how) is None or isinstance(extract(page, how), str)


def test_languages_are_told_offline_and_filtered(tmp_path: Path) -> None:
    german = "Im Jahr darauf trägt der Bauer die Leiter des Nachbarn über die Brücke, und alle wundern sich sehr. " * 3
    settings = {"language.keep": ["en"], "filters.c4.enable": False, "filters.gopher_quality.enable": False}
    left, dropped = clean(tmp_path, [prose(1), german], **settings)
    assert left == [prose(1)] and dropped == {"language: another language": 1}
    with pytest.raises(ConfigError, match=r"language\.keep names 'english', which the model does not know"):
        clean(tmp_path, [], **{"language.keep": ["english"]})
    assert identifier().classify(german)[0] == "de"


@pytest.mark.parametrize(
    "text, masked",
    [
        ("Write to jane.doe+spam@mail.example-site.co.uk, please.", "Write to email@example.com, please."),
        (
            "<a@b.org>; user@localhost; @decorator; a @ b.com",
            "<email@example.com>; user@localhost; @decorator; a @ b.com",
        ),
        ("'john@x.org' `john@x.org` /john@x.org/", "'email@example.com' `email@example.com` /email@example.com/"),
        ("{john@x.org} -john@x.org .john@x.org", "{email@example.com} -email@example.com .email@example.com"),
        ("/in?email=john@x.org&b=1 _john@x.org_", "/in?email=email@example.com&b=1 _email@example.com_"),
        ("from 8.8.8.8 to 192.168.0.1", "from 192.0.2.1 to 192.168.0.1"),
        ("version 1.2.3.4.5 and 999.1.1.1 and v8.8.8.8", "version 1.2.3.4.5 and 999.1.1.1 and v8.8.8.8"),
        ("call +49 89 1234567 or (555) 123-4567", "call +1-555-0100 or +1-555-0100"),
        ("in 2021-03-04, 1234567890 of 555-1234", "in 2021-03-04, 1234567890 of 555-1234"),
    ],
)
def test_personal_data_is_masked_and_little_else(text: str, masked: str) -> None:
    assert mask(text, Pii(phones=True))[0] == masked


def test_masks_are_counted_and_can_be_chosen() -> None:
    text, found = mask("a@b.org 8.8.8.8 c@d.org", Pii(email_mask="<mail>", ips=False))
    assert text == "<mail> 8.8.8.8 <mail>" and found == {"e-mail addresses": 2}


def test_masking_costs_no_more_than_the_length_of_the_text() -> None:
    blob = "abcdefghij" * 200_000  # as a pattern that backtracks, this would take hours
    assert mask(f"{blob}@ {blob.replace('e', '+')} {'a.b-' * 50_000}@ {'a.a@' * 50_000}", Pii(phones=True))[1] == {}


def test_words_and_sentences_need_no_download() -> None:
    text = "Don't panic! It's 3.14 o'clock... “Really?” Yes.\nLine two 日本語です。नमस्ते दुनिया"
    assert WORDS.word_tokenize("Don't panic, 日本語 नमस्ते!") == ["Don't", "panic", ",", "日", "本", "語", "नमस्ते", "!"]
    assert WORDS.sent_tokenize(text) == [
        "Don't panic!",
        "It's 3.14 o'clock...",
        "“Really?”",
        "Yes.",
        "Line two 日本語です。",
        "नमस्ते दुनिया",
    ]
    assert all(
        text[start:stop] == sentence
        for (start, stop), sentence in zip(WORDS.span_tokenize(text), WORDS.sent_tokenize(text), strict=True)
    )
    assert split_into_words(text, PlainWords()) == WORDS.word_tokenize(text)  # pyright: ignore[reportArgumentType]
    parts = split_into_sentences(text, WORDS)  # pyright: ignore[reportArgumentType]
    assert [part.strip() for part in parts] == WORDS.sent_tokenize(text)
