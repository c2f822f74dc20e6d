"""What the tokens of a CTC tokenizer write, one by one."""

from transformers import PreTrainedTokenizerFast

_WORD_BORDER = "▁"  # SentencePiece's and Metaspace's sign for a space


def pieces_of(tokenizer: PreTrainedTokenizerFast, entries: int = 0) -> list[str]:
    """The text of every token, by its id; empty for special tokens, and up to ``entries`` ids that have no token."""
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    pieces = ["" if number in special else token.replace(_WORD_BORDER, " ") for number, token in enumerate(tokens)]
    return pieces + [""] * (entries - len(pieces))
