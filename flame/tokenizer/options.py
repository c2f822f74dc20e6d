"""The options of ``flame tokenizer train`` and ``flame tokenizer eval``."""

from argparse import ArgumentTypeError, Namespace
from pathlib import Path

from flame.config import Source
from flame.errors import ConfigError
from flame.tokenizer.evaluation.references import USUAL
from flame.tokenizer.patterns import PATTERNS
from flame.tokenizer.special_tokens import SETS, SpecialTokens, special_tokens
from flame.utils.arguments import Arguments

KINDS = ("bpe", "sp-bpe", "sp-unigram")
BUDGETS = {"bpe": 2_000_000_000, "sp-bpe": 100_000_000, "sp-unigram": 100_000_000}  # SentencePiece keeps all text
_LARGEST_VOCABULARY = 1_000_000


def train_options() -> Arguments:
    """Returns the parser of ``train``."""
    parser = Arguments("flame tokenizer train", "Learns a tokenizer from text and saves it as a HuggingFace folder.")
    parser.add_argument("folder", help="where to save it")
    _add_data_options(parser)
    parser.add_argument("--kind", choices=KINDS, default="bpe", help="byte-level BPE, or a SentencePiece model (bpe)")
    parser.add_argument("--vocab_size", type=_vocabulary, default=32768, help="size of the vocabulary (32768)")
    parser.add_argument(
        "--pattern", default="gpt4", help=f"what splits text for bpe: {', '.join(PATTERNS)}, or a regex (gpt4)"
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "tokenizers", "rustbpe"),
        default="auto",
        help="what trains bpe, with the same result; auto takes rustbpe if it is installed",
    )
    parser.add_argument(
        "--character_coverage",
        type=float,
        default=0.9995,
        help="share of characters with SentencePiece tokens (0.9995)",
    )
    parser.add_argument("--special", default="plain", help=f"special tokens: {', '.join(SETS)}, or a list with commas")
    parser.add_argument("--add_special", nargs="+", default=[], metavar="TOKEN", help="further special tokens")
    for role, what in (("bos", "begins a document"), ("eos", "ends a document"), ("pad", "fills rows up")):
        parser.add_argument(f"--{role}", default="", metavar="TOKEN", help=f"the special token that {what}")
    parser.add_argument("--chat_template", default="", metavar="FILE", help="Jinja template of conversations")
    parser.add_argument("--overwrite", action="store_true", help="replace a tokenizer that is there")
    return parser


def eval_options() -> Arguments:
    """Returns the parser of ``eval``."""
    parser = Arguments("flame tokenizer eval", "Measures a tokenizer: compression, round trips, vocabulary, speed.")
    parser.add_argument("tokenizer", help="a folder, hub id, .tiktoken file or builtin:python-stdlib-8k")
    _add_data_options(parser)
    parser.add_argument(
        "--reference",
        nargs="+",
        default=list(USUAL),
        help="tokenizers to compare with; gpt2 and cl100k are taken from local caches only (gpt2 cl100k)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--report", default="", metavar="FILE", help="write a page of Markdown as well")
    return parser


def _add_data_options(parser: Arguments) -> None:
    parser.add_argument("--data", nargs="+", default=[], metavar="SOURCE", help="as data.sources path in a job")
    parser.add_argument("--weights", nargs="+", type=float, default=[], help="shares of the characters, one per source")
    parser.add_argument("--name", default="", help="configuration of hub datasets")
    parser.add_argument("--split", default="train", help="split to read (train)")
    parser.add_argument(
        "--format", nargs="+", default=["auto"], help="format such as txt, for all sources or one for each (auto)"
    )
    parser.add_argument("--text_column", default="", help="column that holds the text")
    budgets = "0 for all; 2e9, or 1e8 for SentencePiece, when training, 1e7 for eval"
    parser.add_argument("--max_chars", type=_characters, default=None, help=f"characters to read ({budgets})")
    parser.add_argument(
        "--max_document_chars", type=_characters, default=0, help="characters to take of a document (all)"
    )
    parser.add_argument(
        "--on_bad_row", choices=("skip", "error"), default="skip", help="what to do with bad records (skip)"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the order of documents (0)")


def sources(options: Namespace) -> list[Source]:
    """Returns what ``--data`` and the options about it name.

    Raises:
        ConfigError: There is not one positive weight, or one format, per source.
    """
    weights = options.weights or [1.0] * len(options.data)
    if len(weights) != len(options.data) or min(weights, default=1) <= 0:
        given = " ".join(f"{weight:g}" for weight in weights)
        raise ConfigError(f"--weights {given}: give a positive number for each of the {len(options.data)} sources")
    formats = ["" if name == "auto" else name for name in options.format]
    if len(formats) not in (1, len(options.data)):
        raise ConfigError(
            f"--format {' '.join(options.format)}: give one, or one for each of the {len(weights)} sources"
        )
    return [
        Source(
            path=path,
            weight=weight,
            name=options.name,
            split=options.split,
            format=formats[number if len(formats) > 1 else 0],
            text_column=options.text_column,
        )
        for number, (path, weight) in enumerate(zip(options.data, weights, strict=True))
    ]


def chosen_special_tokens(options: Namespace) -> SpecialTokens:
    """Returns the special tokens that the options of ``train`` ask for.

    Raises:
        ConfigError: They do not go together, or the chat template is not there.
    """
    template = ""
    if options.chat_template:
        path = Path(options.chat_template).expanduser()
        try:
            template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--chat_template {path} cannot be read ({error}): name a file with a template"
            ) from error
    return special_tokens(
        options.special, options.add_special, options.bos, options.eos, options.pad, template=template
    )


def _vocabulary(word: str) -> int:
    if not word.isdigit() or not 1 <= int(word) <= _LARGEST_VOCABULARY:
        raise ArgumentTypeError(f"'{word}' is not a number of tokens up to {_LARGEST_VOCABULARY}")
    return int(word)


def _characters(word: str) -> int:
    """A count such as 2000000 or 2e6."""
    try:
        number = float(word)
    except ValueError:
        number = -1.0
    if number < 0 or number != number // 1 or number == float("inf"):
        raise ArgumentTypeError(f"'{word}' is not a number of characters, such as 2e9")
    return int(number)
