"""SentencePiece models become fast tokenizers with the same ids, and texts come back."""

import random

import pytest

from flame.errors import ConfigError
from flame.tokenizer.byte_lengths import token_bytes
from flame.tokenizer.load import load_tokenizer
from flame.tokenizer.sentence_pieces import BLANK, SentencePieceTraining

sentencepiece = pytest.importorskip("sentencepiece")
KINDS = ("unigram", "bpe")


@pytest.fixture(scope="module", params=KINDS)
def pair(request, texts):
    """A fast tokenizer and the SentencePiece model that it was made of."""
    tokenizer, model = SentencePieceTraining(request.param, 1200, ["<|bos|>", "<|eos|>"]).run(iter(texts))
    tokenizer.encode_special_tokens = True
    return tokenizer, sentencepiece.SentencePieceProcessor(model_proto=model)


def fuzz(processor, number: int = 3000) -> list[str]:
    rng = random.Random(0)
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    makers = [
        lambda: rng.choice(pieces).replace(BLANK, " "),
        lambda: rng.choice("ab  \te_\r"),
        lambda: chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xA0, 0x3000), rng.randrange(0xAC00, 0xB000)])),
        lambda: rng.choice(["<0x41>", "<|bos|>", "<unk>", "<|eos|>", "x", " "]),
        lambda: rng.choice(["\0", "\u2585", "\x0b", "\u2028", "\ufeff", "e\u0301", "\U0001f600", BLANK]),
    ]
    return ["".join(rng.choice(makers)() for _ in range(rng.randrange(1, 40))) for _ in range(number)] + [""]


def test_ids_are_those_of_sentencepiece(pair, texts):
    tokenizer, processor = pair
    lines = [line for text in texts[: len(texts) // 2] for line in text.split("\n")] + fuzz(processor)
    encodings = tokenizer.encode_batch_fast(lines, add_special_tokens=False)
    for line, ids in zip(lines, processor.encode(lines), strict=True):
        assert encodings.pop(0).ids == ids, line


def test_ids_of_all_characters_are_those_of_sentencepiece(pair):
    tokenizer, processor = pair
    codes = [*range(0x3000), *range(0xAC00, 0xAD00), *range(0xE000, 0xE100), *range(0xFFF0, 0x10010), 0x1F600, 0x10FFFF]
    text = "".join(map(chr, codes))
    assert tokenizer.encode(text, add_special_tokens=False).ids == processor.encode(text)


def test_a_text_is_its_lines_and_line_breaks(pair, texts):
    tokenizer, processor = pair
    line_break = processor.piece_to_id("<0x0A>")
    for text in texts[:5]:
        lines = [[line_break, *processor.encode(line)] for line in text.split("\n")]
        assert tokenizer.encode(text, add_special_tokens=False).ids == [index for line in lines for index in line][1:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_brings_texts_back_and_knows_their_bytes(trained, kind):
    folder = trained("--kind", f"sp-{kind}")
    loaded = load_tokenizer(str(folder))
    counts = token_bytes(loaded)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.model"))
    assert (loaded.unk_token, loaded.bos_token, loaded.eos_token) == ("<unk>", "<|bos|>", "<|eos|>")
    for text in fuzz(processor, 500):
        ids = loaded(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert loaded.decode(ids) == text.replace(BLANK, " ")
        assert int(counts[ids].sum()) == len(text.replace(BLANK, " ").encode())
        assert ids == processor.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_text_gives_the_same_tokenizer(texts, kind):
    first, second = (SentencePieceTraining(kind, 900, []).run(iter(texts[-8:])) for _ in range(2))
    assert first[1] == second[1] and first[0].to_str() == second[0].to_str()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("bpe", 258, ["<|bos|>"]), "--vocab_size 258 cannot hold 2 special tokens, 256 bytes and a piece"),
        (("bpe", 1000, ["<unk>"]), "special token '<unk>' is one of SentencePiece's own"),
        (("bpe", 1000, [], 0.1), "--character_coverage 0.1 must be between 0.9 and 1"),
    ],
)
def test_what_cannot_be_learned_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SentencePieceTraining(*options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_smaller_than_the_alphabet_is_one_line(texts, kind):
    with pytest.raises(
        ConfigError, match="Vocabulary size is smaller than required_chars.*change --vocab_size"
    ) as caught:
        SentencePieceTraining(kind, 270, [], 1.0).run(iter(texts))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_looks_like_a_token_is_text_even_if_its_characters_were_never_seen(kind):
    """`tokenizers` finds every entry of a unigram vocabulary in texts, special ones too."""
    texts = ["only plain words and nothing else in here at all, again and again"] * 20
    tokenizer, model = SentencePieceTraining(kind, 330, ["<|bos|>"]).run(iter(texts))
    tokenizer.encode_special_tokens = True
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in ("<|bos|>", "a<|bos|> <unk>", "<0x41><0xFF>", "\u00e9<0x41>\u00e9<|bos|>"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == processor.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert not {0, 1, processor.piece_to_id("<0x41>")} & set(ids)
