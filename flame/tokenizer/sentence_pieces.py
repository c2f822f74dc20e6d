"""Training SentencePiece models (unigram, BPE), and turning them into fast tokenizers that give the same ids.

Nothing is normalised and no blank is put before a text, so decoding gives back what was encoded; characters that are
not in the vocabulary become bytes. The one exception is U+2581, by which SentencePiece writes a blank.
"""

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from flame.errors import ConfigError, need

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

Kind = Literal["unigram", "bpe"]

BLANK = "\u2581"
UNKNOWN = "<unk>"
_LONGEST_LINE = 1 << 16  # characters; a longer line is learned from in parts
_THREADS = 4  # fixed, since sums of floats depend on it
# Tokens that no text may become, such as <0x41>: `tokenizers` would find them in text that looks like them. With this
# score it takes any other way through their characters, all of which the vocabulary holds.
_NEVER = -1e6
_GRID = 2.0**-8  # of scores: sums stay exact in single precision up to 2^16, some 6,000 tokens


class SentencePieceTraining:
    """A training of SentencePiece that has been found possible.

    Args:
        kind: The model.
        vocab_size: Size of the vocabulary: the unknown token, special tokens, 256 bytes, and pieces.
        special: Special tokens, which get the ids behind the unknown token's, 0.
        character_coverage: Share of the characters in the text that get tokens of their own; the others become bytes.

    Raises:
        ConfigError: The vocabulary is too small, a special token is one that SentencePiece has itself, or
            sentencepiece is not installed.
    """

    def __init__(
        self,
        kind: Kind,
        vocab_size: int,
        special: Sequence[str],
        character_coverage: float = 0.9995,
    ) -> None:
        need("tokenizers", "sentencepiece")
        self.kind: Kind = kind
        self.vocab_size, self.special = vocab_size, tuple(special)
        self.character_coverage = character_coverage
        if not 0.9 <= character_coverage <= 1:
            raise ConfigError(f"--character_coverage {character_coverage:g} must be between 0.9 and 1")
        smallest = 1 + len(special) + 256
        if vocab_size <= smallest:
            raise ConfigError(
                f"--vocab_size {vocab_size} cannot hold {smallest - 256} special tokens, 256 bytes and a piece: "
                f"make it at least {smallest + 1}"
            )
        for token in special:
            if token in _own_tokens():
                raise ConfigError(f"special token '{token}' is one of SentencePiece's own: name it otherwise")

    def run(self, texts: Iterator[str]) -> tuple[Tokenizer, bytes]:
        """Learns from texts, all of which it keeps in memory.

        Returns:
            The tokenizer, and the SentencePiece model that it was made of.

        Raises:
            ConfigError: The text has more characters than the vocabulary has room for, or too few.
        """
        import sentencepiece

        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_lines(texts),
                model_writer=model,
                model_type=self.kind,
                vocab_size=self.vocab_size,
                hard_vocab_limit=False,
                control_symbols=list(self.special),
                unk_piece=UNKNOWN,
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                byte_fallback=True,
                character_coverage=self.character_coverage,
                required_chars="".join(sorted(set("".join((*self.special, *_own_tokens()))))),
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                split_digits=True,
                max_sentence_length=4 * _LONGEST_LINE,
                num_threads=_THREADS,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].rpartition("] ")[2].split(". Increase")[0]
            raise ConfigError(
                f"SentencePiece cannot learn {self.vocab_size} tokens from this text ({reason}): change --vocab_size, "
                "lower --character_coverage, or read more text"
            ) from error
        data = _on_grid(model.getvalue()) if self.kind == "unigram" else model.getvalue()
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        return fast_tokenizer(processor, self.kind), data


def _own_tokens() -> list[str]:
    return [UNKNOWN, *(f"<0x{byte:02X}>" for byte in range(256))]


def _lines(texts: Iterator[str]) -> Iterator[str]:
    """The lines of texts; a line break is always a token of its own, a byte."""
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _LONGEST_LINE):
                yield line[start : start + _LONGEST_LINE]


def _on_grid(data: bytes) -> bytes:
    """Rounds the scores of a unigram model so that sums of them are exact, in single precision as in double.

    Otherwise two ways to cut a line that are equally good, such as two orders of the same pieces, differ in the last
    bit, and which one wins depends on the precision.
    """
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(data)  # pyright: ignore[reportAttributeAccessIssue]
    for piece in model.pieces:
        piece.score = round(piece.score / _GRID) * _GRID
    return model.SerializeToString(deterministic=True)


def fast_tokenizer(processor: "SentencePieceProcessor", kind: Kind) -> Tokenizer:
    """Turns a model trained as above into a fast tokenizer with the same ids.

    Of a unigram model they are the same for every line. SentencePiece sums scores over a whole text, and after some
    thousands of tokens its single precision no longer tells close calls apart.
    """
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    reserved = {
        index
        for index in range(len(pieces))
        if processor.is_control(index) or processor.is_unknown(index) or processor.is_byte(index)
    }
    if kind == "unigram":
        scores = [_NEVER if index in reserved else processor.get_score(index) for index in range(len(pieces))]
        model = models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=0, byte_fallback=True)
    else:
        ids = {piece: index for index, piece in enumerate(pieces)}
        merges = _merges({piece: index for piece, index in ids.items() if index not in reserved})
        model = models.BPE(vocab=ids, merges=merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", BLANK)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("\n"), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [pieces[index] for index in sorted(reserved) if not processor.is_byte(index)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def _merges(ids: dict[str, int]) -> list[tuple[str, str]]:
    """All pairs that make a piece, best piece first: SentencePiece merges whatever makes the best piece."""
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(ids, key=lambda piece: ids[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
