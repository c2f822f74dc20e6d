"""Tokenizers for CTC: characters, or pieces of words, over a blank that decoding leaves out.

They are transformers' ``ParakeetTokenizer``, whose ``decode`` collapses repeated ids and drops the padding token, which
is the blank.
"""

from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.parakeet.tokenization_parakeet import ParakeetTokenizer

from flame.errors import ConfigError, DataError

BLANK, UNKNOWN = "<pad>", "<unk>"
"""Ids 0 and 1 of every tokenizer made here."""
ENGLISH = " 'abcdefghijklmnopqrstuvwxyz"
"""The alphabet of ``builtin:characters-en``."""


def character_tokenizer(alphabet: str | Sequence[str]) -> PreTrainedTokenizerFast:
    """Makes a tokenizer with a token per character: the blank is 0, the unknown character 1, then the alphabet.

    Args:
        alphabet: The characters in the order of their ids; a space stands between words.

    Raises:
        ConfigError: It is empty, names a character twice, or something that is not one character.
    """
    characters = list(alphabet)
    if not characters:
        raise ConfigError("the alphabet is empty: give the characters of the transcripts")
    wrong = next((entry for i, entry in enumerate(characters) if len(entry) != 1 or entry in characters[:i]), None)
    if wrong is not None:
        raise ConfigError(f"the alphabet's entry {wrong!r} is not one character, or is there twice: take it out")
    vocab = {token: number for number, token in enumerate([BLANK, UNKNOWN, *characters])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return _tokenizer(backend)


def subword_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learns byte-pair pieces of words: the blank is 0, the unknown character 1, then characters and pieces.

    Args:
        texts: Transcripts.
        vocab_size: Entries; fewer come out if the transcripts do not have so many pieces.

    Raises:
        ConfigError: Not even the characters fit.
    """
    backend = Tokenizer(models.BPE(unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[BLANK, UNKNOWN], show_progress=False)
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() > vocab_size:
        raise ConfigError(
            f"--vocab-size {vocab_size}: the transcripts alone have {backend.get_vocab_size() - 2} characters: "
            f"make it {backend.get_vocab_size()} or more"
        )
    return _tokenizer(backend)


def is_builtin_alphabet(path: str) -> bool:
    """Whether a tokenizer's name is one of a built-in alphabet."""
    return path.startswith("builtin:characters-")


def builtin_characters(path: str) -> PreTrainedTokenizerFast:
    """The tokenizer ``builtin:characters-en``: a to z, the apostrophe and the space; no file is needed.

    Raises:
        DataError: There is no alphabet of that name.
    """
    language = path.removeprefix("builtin:characters-")
    if language != "en":
        raise DataError(f"no built-in alphabet '{path}': write builtin:characters-en, or a folder of prepare-ctc")
    return character_tokenizer(ENGLISH)


def _tokenizer(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return ParakeetTokenizer(
        tokenizer_object=backend, pad_token=BLANK, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )
