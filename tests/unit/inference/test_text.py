import random

import pytest
from transformers import PreTrainedTokenizerFast

from flame.inference.text import TextStream

MIXED = "naïve 🙂 日本語 the cat — fin"


@pytest.fixture(scope="module")
def tokenizer(materials) -> PreTrainedTokenizerFast:
    """One token per byte outside the few words it knows."""
    return PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def test_no_piece_holds_half_a_character(tokenizer: PreTrainedTokenizerFast) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids_of(tokenizer, MIXED)]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == stream.text == MIXED
    assert "" in pieces  # bytes were waited for


def test_bytes_that_never_become_a_character_are_shown_at_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    stream = TextStream(tokenizer)
    for token in ids_of(tokenizer, "ok 🙂")[:-1]:
        stream.push(token)
    assert stream.text == "ok "
    assert stream.flush() == "\ufffd" and stream.text == "ok \ufffd"


def test_endless_broken_bytes_do_not_hold_the_text_back(tokenizer: PreTrainedTokenizerFast) -> None:
    stream = TextStream(tokenizer)
    broken = ids_of(tokenizer, "🙂")[:1]
    for token in broken * 40:
        stream.push(token)
    assert len(stream.text) >= 32


def test_special_tokens_have_no_text(tokenizer: PreTrainedTokenizerFast) -> None:
    stream = TextStream(tokenizer)
    assert tokenizer.eos_token_id is not None
    for token in [*ids_of(tokenizer, "a"), tokenizer.eos_token_id, *ids_of(tokenizer, "b")]:
        stream.push(token)
    stream.flush()
    assert stream.text == "ab"


def test_a_special_token_can_be_stopped_at(tokenizer: PreTrainedTokenizerFast) -> None:
    end = tokenizer.eos_token
    assert isinstance(end, str) and tokenizer.eos_token_id is not None
    stream = TextStream(tokenizer, stops=["xyz", end])
    pieces = [stream.push(token) for token in [*ids_of(tokenizer, "the cat x"), tokenizer.eos_token_id, 5]]
    assert "".join(pieces) == stream.text == "the cat x" and stream.stopped == end and not stream.flush()


def test_the_prompt_decides_about_a_space_in_front() -> None:
    class Words:
        """Puts spaces between words, and none in front of the first."""

        def decode(self, ids: list[int], **options: object) -> str:
            return " ".join(f"w{index}" for index in ids)

    stream = TextStream(Words(), before=[1, 2])  # type: ignore[arg-type]
    assert [stream.push(3), stream.push(4)] == [" w3", " w4"]


@pytest.mark.parametrize("stop", ["cat", " cat s", "s a tr", "日本", "e"])
def test_the_text_ends_before_the_first_stop(tokenizer: PreTrainedTokenizerFast, stop: str) -> None:
    text = "the 日本 old cat sees a tree"
    stream = TextStream(tokenizer, stops=(stop, "tree"))
    shown = ""
    for token in ids_of(tokenizer, text):
        shown += stream.push(token)
        assert stop not in shown and text.startswith(shown)
    shown += stream.flush()
    assert shown == stream.text == text[: text.index(stop)]
    assert stream.stopped == stop


@pytest.mark.parametrize("skip", range(7))
def test_what_is_skipped_is_no_part_of_the_text_nor_of_a_stop(tokenizer: PreTrainedTokenizerFast, skip: int) -> None:
    stream = TextStream(tokenizer, stops=("  c",), skip=skip)
    shown = "".join(stream.push(token) for token in ids_of(tokenizer, "   cat")) + stream.flush()
    assert shown == stream.text == "   cat"[skip:].partition("  c")[0]
    assert bool(stream.stopped) is (skip < 2)


def test_what_only_looked_like_a_stop_is_shown_in_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    stream = TextStream(tokenizer, stops=("cats",))
    pieces = "".join(stream.push(token) for token in ids_of(tokenizer, "a cat"))
    assert pieces == "a "
    assert stream.flush() == "cat" and stream.text == "a cat" and not stream.stopped


def test_pieces_add_up_whatever_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    drawn = random.Random(0)
    for _ in range(50):
        text = "".join(drawn.choice("ab cé日🙂\n") for _ in range(30))
        stop = "".join(drawn.choice("ab cé") for _ in range(2))
        stream = TextStream(tokenizer, stops=(stop,))
        shown = "".join(stream.push(token) for token in ids_of(tokenizer, text)) + stream.flush()
        assert shown == stream.text == text.partition(stop)[0]
