"""What the tokens of a CTC tokenizer write."""

from flame.tokenizer.load import load_tokenizer
from flame.tokenizer.pieces import pieces_of


def test_ids_beyond_the_tokenizer_write_nothing():
    tokenizer = load_tokenizer("builtin:characters-en")
    pieces = pieces_of(tokenizer)
    assert len(pieces) == len(tokenizer) and pieces[tokenizer.get_vocab()["a"]] == "a"
    assert pieces_of(tokenizer, len(tokenizer) + 2) == [*pieces, "", ""]
    assert pieces_of(tokenizer, 1) == pieces
