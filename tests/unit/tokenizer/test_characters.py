"""CTC tokenizers: blank, unknown, characters or pieces; decoding collapses repeats and leaves the blank out."""

import pytest
from transformers import AutoTokenizer
from transformers.models.parakeet.tokenization_parakeet import ParakeetTokenizer

from flame.errors import ConfigError, DataError
from flame.tokenizer.characters import ENGLISH, character_tokenizer, subword_tokenizer
from flame.tokenizer.load import load_tokenizer

TEXTS = ["seven one two", "two nine seven seven three"] * 3


def peaks(ids: list[int]) -> list[int]:
    """Frames as a CTC model gives them: blanks between, and every label twice."""
    return [0, *(frame for label in ids for frame in (label, label, 0))]


def test_the_blank_is_first_and_characters_keep_their_order():
    tokenizer = character_tokenizer("ba ")
    assert tokenizer.pad_token_id == 0 and tokenizer.unk_token_id == 1
    assert tokenizer("ab xa").input_ids == [3, 2, 4, 1, 3] and len(tokenizer) == 5


@pytest.mark.parametrize("make", [lambda: character_tokenizer(ENGLISH), lambda: subword_tokenizer(TEXTS, 32)])
def test_a_saved_tokenizer_loads_and_decodes_as_ctc_does(tmp_path, make):
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for loaded in (AutoTokenizer.from_pretrained(tmp_path / "tokenizer"), load_tokenizer(str(tmp_path / "tokenizer"))):
        assert isinstance(loaded, ParakeetTokenizer) and len(loaded) == len(tokenizer)
        for text in ("seven three two", "two", ""):
            ids = loaded(text).input_ids
            assert ids == tokenizer(text).input_ids and 0 not in ids
            assert loaded.decode(peaks(ids)) == text
        assert loaded.batch_decode([peaks(loaded("one").input_ids), [0, 0]]) == ["one", ""]


def test_repeated_letters_need_a_blank_between():
    tokenizer = character_tokenizer(ENGLISH)
    (e,) = tokenizer("e").input_ids
    assert tokenizer.decode([e, e]) == "e" and tokenizer.decode([e, 0, e]) == "ee"


def test_the_built_in_alphabet_needs_no_file():
    tokenizer = load_tokenizer("builtin:characters-en")
    assert len(tokenizer) == 30 and tokenizer("it's a z").input_ids.count(1) == 0
    with pytest.raises(DataError, match="write builtin:characters-en"):
        load_tokenizer("builtin:characters-xx")


def test_pieces_are_learned_alike_every_time():
    first, second = subword_tokenizer(TEXTS, 32), subword_tokenizer(iter(TEXTS), 32)
    assert first.get_vocab() == second.get_vocab() and len(first) == 31
    assert len(first("seven").input_ids) == 1 and first("x").input_ids[-1] == 1


def test_what_cannot_be_an_alphabet_is_told():
    for alphabet in ("", "aa", ["ab"]):
        with pytest.raises(ConfigError, match="alphabet"):
            character_tokenizer(alphabet)
    with pytest.raises(ConfigError, match="alone have 11 characters: make it 13 or more"):
        subword_tokenizer(TEXTS, 5)
