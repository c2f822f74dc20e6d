"""``flame tokenizer train`` learns a tokenizer from text; ``flame tokenizer eval`` measures one."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from flame.data.encoder import TextEncoder
from flame.data.sources.records import TEXT
from flame.data.texts import BudgetedTexts
from flame.data.tiktoken_encoding import tiktoken_encoding
from flame.errors import ConfigError, DataError, closest
from flame.tokenizer.byte_bpe import BytePairTraining
from flame.tokenizer.byte_lengths import token_bytes
from flame.tokenizer.evaluation.compression import Compression, compress, vocabulary_use
from flame.tokenizer.evaluation.references import find_references
from flame.tokenizer.evaluation.report import Evaluation, as_json, as_markdown, as_text
from flame.tokenizer.evaluation.round_trip import round_trips
from flame.tokenizer.evaluation.samples import SAMPLES
from flame.tokenizer.evaluation.speed import encoding_speeds
from flame.tokenizer.folder import check_target, check_template, save_tokenizer
from flame.tokenizer.load import load_tokenizer
from flame.tokenizer.options import BUDGETS, chosen_special_tokens, eval_options, sources, train_options
from flame.tokenizer.sentence_pieces import UNKNOWN, SentencePieceTraining
from flame.tokenizer.summary import training_summary

_KEPT = 1_000_000  # characters of a corpus that are kept, to encode them once more
_EVALUATED = 10_000_000  # characters of a source that are encoded


def main(argv: list[str]) -> int:
    """Runs ``flame tokenizer VERB ...``.

    Raises:
        FlameError: There is no such verb, or what it raises.
    """
    verbs = {"train": train, "eval": evaluate}
    if not argv or argv[0] in ("-h", "--help"):
        print(
            "usage: flame tokenizer VERB [ARGUMENTS]\n\n  train  learn a tokenizer from text\n"
            "  eval   measure one: compression, round trips, vocabulary, speed\n\n"
            "`flame tokenizer VERB --help` says more about one."
        )
        return 0
    if argv[0] not in verbs:
        hint = closest(argv[0], verbs)
        raise ConfigError(f"flame tokenizer has no verb '{argv[0]}': use {' or '.join(verbs)}.{hint}")
    return verbs[argv[0]](argv[1:])


def train(argv: list[str]) -> int:
    """Learns a tokenizer and saves it as a HuggingFace folder.

    Raises:
        FlameError: The options do not go together, or the text cannot be read.
    """
    options = train_options().parse_args(argv)
    folder = Path(options.folder).expanduser()
    check_target(folder, options.overwrite)
    if not options.data:
        raise ConfigError("there is no --data: name files, folders, hub datasets or builtin:python-stdlib")
    special = chosen_special_tokens(options)
    check_template(special.chat_template)
    if options.kind == "bpe":
        training = BytePairTraining(options.vocab_size, options.pattern, special.tokens, options.backend)
        how = f"byte-level BPE, pattern {options.pattern}, learned by {training.backend}"
    else:
        kind = "unigram" if options.kind == "sp-unigram" else "bpe"
        training = SentencePieceTraining(kind, options.vocab_size, special.tokens, options.character_coverage)
        how = f"SentencePiece {kind}"
    budget = BUDGETS[options.kind] if options.max_chars is None else options.max_chars
    texts = BudgetedTexts(sources(options), budget, options.max_document_chars, options.on_bad_row, options.seed)
    started, kept = time.perf_counter(), []
    trained = training.run(_watched(texts, budget, kept))
    seconds = time.perf_counter() - started
    backend, model = trained if isinstance(trained, tuple) else (trained, b"")
    record = {
        "kind": options.kind,
        **({"pattern": training.pattern} if isinstance(training, BytePairTraining) else {}),
        "sources": {read.name: {"documents": read.documents, "characters": read.characters} for read in texts.read},
        "seed": options.seed,
    }
    unknown = UNKNOWN if model else ""
    save_tokenizer(folder, backend, special, record, unknown=unknown, model=model, overwrite=options.overwrite)
    print(training_summary(folder, how, backend, special, options.vocab_size, seconds, _read(texts), kept))
    return 0


def _watched(texts: BudgetedTexts, budget: int, kept: list[str]) -> Iterator[str]:
    """Passes texts on while showing how far it has come, and keeps the first million characters."""
    left = _KEPT
    with tqdm(total=budget or None, unit="char", unit_scale=True, desc="reading", disable=None) as bar:
        for text in texts:
            bar.update(len(text))
            if left > 0:
                kept.append(text[:left])
                left -= len(text)
            yield text
        bar.set_description("read; now learning")


def _read(texts: BudgetedTexts) -> list[str]:
    lines = [
        f"{read.documents:,} documents, {read.characters:,} characters of {read.name}"
        + (f" ({read.shortened:,} documents cut short)" if read.shortened else "")
        for read in texts.read
    ]
    counts, examples = texts.bad_rows.drain()
    return lines + [f"{count:,} left out: {reason}, first {examples[reason]}" for reason, count in counts.items()]


def evaluate(argv: list[str]) -> int:
    """Measures a tokenizer and prints what it found.

    Raises:
        FlameError: A tokenizer or a source cannot be read.
    """
    options = eval_options().parse_args(argv)
    if options.max_chars is None:
        options.max_chars = _EVALUATED
    tokenizer = load_tokenizer(options.tokenizer)
    own = _bare(tokenizer)
    references, missing = find_references(options.reference)
    tokenizers = {options.tokenizer: own} | {name: _bare(reference) for name, reference in references.items()}
    seen = np.zeros(len(tokenizer), np.int64)
    compression: dict[str, dict[str, Compression]] = {}
    for domain, text in SAMPLES.items():
        compression[domain] = compress(tokenizers, [text], seen)
    kept: list[str] = []
    skipped: dict[str, int] = {}
    for source in sources(options):
        budget = options.max_chars
        texts = BudgetedTexts([source], budget, options.max_document_chars, options.on_bad_row, options.seed)
        compression[source.path] = compress(tokenizers, _watched(texts, budget, kept), seen)
        for reason, count in texts.bad_rows.drain()[0].items():
            skipped[reason] = skipped.get(reason, 0) + count
    counted = token_bytes(tokenizer).numpy()
    evaluation = Evaluation(
        name=options.tokenizer,
        compression=compression,
        missing=missing,
        round_trips=round_trips(own, counted),
        vocabulary=vocabulary_use(own, seen),
        speeds=encoding_speeds(_ways(tokenizer, own), kept or list(SAMPLES.values())),
        skipped=skipped,
    )
    print(json.dumps(as_json(evaluation), indent=2) if options.json else as_text(evaluation))
    if options.report:
        _write(Path(options.report).expanduser(), as_markdown(evaluation))
    return 0


def _bare(tokenizer: PreTrainedTokenizerFast | Tokenizer) -> Tokenizer:
    """A copy that takes all text for text: nothing is cut or filled up, and special tokens are not looked for."""
    backend = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy


def _ways(tokenizer: PreTrainedTokenizerFast, bare: Tokenizer) -> dict[str, Callable[[list[str]], Any]]:
    encoder = TextEncoder(tokenizer, add_bos=False, add_eos=False)
    ways: dict[str, Callable[[list[str]], Any]] = {
        "tokenizers": lambda texts: bare.encode_batch_fast(texts, add_special_tokens=False),
        "while training": lambda texts: encoder.encode([{TEXT: text} for text in texts]),
    }
    fast = tiktoken_encoding(bare)
    if fast is not None:
        ways["tiktoken"] = fast.encode_batch
    return ways


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write --report {path} ({error.strerror}): name a file that can be written") from error
