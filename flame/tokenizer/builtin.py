"""The built-in tokenizers, ``builtin:<corpus>-<N>k``: trained here once and cached.

Byte-level BPE with N * 1024 entries over a built-in corpus; ``builtin:python-stdlib-8k`` takes about 3 s.
"""

import platform
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from flame.errors import DataError
from flame.tokenizer.cache import build_once, cache_folder
from flame.tokenizer.corpus import CORPORA, corpus_files

PREFIX = "builtin:"
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"

# Words keep one leading space or sign, digits come in pairs at most, punctuation takes its line break along, and
# runs of white space (indentation) stay whole but for the last blank, which belongs to the next word.
_WORDS = (
    r"'(?i:[sdmt]|ll|ve|re)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]"
    r"|\s+(?!\S)"
    r"|\s+"
)
_VERSION = 1  # raise it when the recipe below changes, so that old caches are not taken for new


def builtin_tokenizer(name: str) -> Path:
    """Returns the folder of a built-in tokenizer, training it first if it is not cached.

    Args:
        name: As in ``builtin:python-stdlib-8k``.

    Raises:
        DataError: If the name is not of that form.
    """
    match = re.fullmatch(rf"{PREFIX}([a-z-]+)-(\d+)k", name)
    if not match or match[1] not in CORPORA or not 1 <= int(match[2]) <= 256:
        raise DataError(f"no built-in tokenizer '{name}': write builtin:{CORPORA[0]}-8k (1k to 256k entries)")
    corpus, thousands = match[1], int(match[2])
    # The corpus changes with the Python version, and so does what is learned from it.
    folder = cache_folder() / "tokenizers" / f"{corpus}-{thousands}k-python{platform.python_version()}-v{_VERSION}"
    return build_once(folder, lambda draft: _train(corpus, thousands * 1024, draft))


def _train(corpus: str, vocab_size: int, folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (path.read_text(encoding="utf-8") for path in corpus_files(corpus, "train"))
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
