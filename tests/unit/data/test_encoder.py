"""Separators follow the job, or the tokenizer's habit, and encoders travel to worker processes."""

import pickle

import pytest
from tokenizers import pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from flame.data import TextEncoder
from flame.errors import DataError

BOS, EOS = 256, 257


def ids(encoder, text="ab"):
    return encoder.encode([{"text": text}])[0].tolist()


def without(byte_tokenizer, *names):
    changed = pickle.loads(pickle.dumps(byte_tokenizer))
    for name in names:
        setattr(changed, f"{name}_token", None)
    return changed


@pytest.fixture
def habitual(byte_tokenizer):
    """The byte tokenizer in the habit of beginning texts with its BOS token."""
    changed = pickle.loads(pickle.dumps(byte_tokenizer))
    changed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return changed


def test_separators_are_added_as_asked(byte_tokenizer):
    text = byte_tokenizer("ab", add_special_tokens=False).input_ids
    assert ids(TextEncoder(byte_tokenizer, add_bos=False, add_eos=False)) == text
    assert ids(TextEncoder(byte_tokenizer, add_bos=True, add_eos=True)) == [BOS, *text, EOS]


def test_unset_separators_follow_the_tokenizers_habit(byte_tokenizer, habitual):
    text = byte_tokenizer("ab", add_special_tokens=False).input_ids
    assert ids(TextEncoder(byte_tokenizer, add_bos=None, add_eos=None)) == text
    assert ids(TextEncoder(habitual, add_bos=None, add_eos=True)) == [BOS, *text, EOS]
    assert ids(TextEncoder(habitual, add_bos=False, add_eos=None)) == text


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_a_separator_that_the_tokenizer_lacks_is_an_error(byte_tokenizer, name):
    with pytest.raises(DataError, match=f"no {name} token: set data.add_{name} = false"):
        TextEncoder(without(byte_tokenizer, name), add_bos=True, add_eos=True)


def test_settings_saved_with_the_tokenizer_do_not_apply(byte_tokenizer):
    byte_tokenizer.backend_tokenizer.enable_truncation(1)
    byte_tokenizer.backend_tokenizer.enable_padding(length=9)
    try:
        encoder = TextEncoder(byte_tokenizer, add_bos=False, add_eos=False)
    finally:
        byte_tokenizer.backend_tokenizer.no_truncation()
        byte_tokenizer.backend_tokenizer.no_padding()
    assert len(ids(encoder)) == 2


def test_an_encoder_pickles_without_the_tokenizer_class(byte_tokenizer):
    encoder = TextEncoder(byte_tokenizer)
    data = pickle.dumps(encoder)
    assert PreTrainedTokenizerFast.__module__.encode() not in data
    assert ids(pickle.loads(data)) == ids(encoder)


def test_long_texts_are_encoded_in_chunks_without_a_trace(byte_tokenizer):
    text = "some words\n" * 250_000
    encoded = ids(TextEncoder(byte_tokenizer, add_bos=True, add_eos=True), text)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    line = [alphabet.index(character) for character in "some\u0120words\u010a"]
    assert encoded == [BOS, *line * 250_000, EOS]
