"""Prepares recordings for CTC: manifests, a tokenizer and a report, as one folder that is whole or not there."""

import json
from pathlib import Path

from flame.data.audio.collect import Utterance, collect
from flame.data.audio.manifest_writer import ManifestWriter
from flame.data.audio.normalise_text import characters
from flame.data.audio.options import Options
from flame.data.audio.prepared import Prepared
from flame.data.audio.report import write_report
from flame.data.audio.splitting import hold_out, joined
from flame.errors import ConfigError, DataError
from flame.files import beside, remove, replace_folder, sync
from flame.tokenizer.characters import character_tokenizer, subword_tokenizer

RECORD = "preparation.json"
"""What a preparation was told; a folder with it may be overwritten."""


def prepare(options: Options) -> Prepared:
    """Prepares recordings; the same sources and options give the same bytes.

    Raises:
        ConfigError: Something is in the way, or the options do not fit the transcripts.
        DataError: A source cannot be read, nothing is left of it, or the folder cannot be written.
    """
    _check_target(options)
    kept, dropped = collect(options)
    train, validation = hold_out(kept, options.validation, options.seed, options.group)
    train_joined, validation_joined = _joined(train, validation, options)
    draft = beside(options.output)
    try:
        draft.mkdir(parents=True)
        vocabulary, unknown = _write_tokenizer(draft / "tokenizer", train, validation, options)
        made = Prepared(train, validation, train_joined, validation_joined, dropped, vocabulary, unknown)
        _write_manifests(draft, made, options)
        write_report(draft, made, options)
        record = json.dumps(options.record(), indent=1, ensure_ascii=False)
        (draft / RECORD).write_text(f"{record}\n", encoding="utf-8")
        for path in draft.rglob("*"):
            sync(path)
        replace_folder(draft, options.output, beside(options.output))
    except OSError as error:
        raise DataError(
            f"cannot write {options.output} ({error.strerror or error}): name a folder that can be written"
        ) from error
    finally:
        remove(draft)
    return made


def _check_target(options: Options) -> None:
    """Refuses to replace what is there, before an hour is spent."""
    folder = options.output
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / RECORD).is_file():
        raise ConfigError(f"'{folder}' exists and is no preparation: name another folder with --output")
    if not options.overwrite:
        raise ConfigError(f"'{folder}' holds a preparation already: name another folder, or give --overwrite")


def _joined(
    train: list[Utterance], validation: list[Utterance], options: Options
) -> tuple[list[Utterance], list[Utterance]]:
    if options.join is None:
        return [], []
    count = options.join_count or len(train)
    # As many for validation as its share of the recordings, and one at least.
    held_out = max(1, round(count * len(validation) / len(train))) if validation else 0
    draw = {"parts": options.join, "silence": options.silence}
    return (
        list(joined(train, count, seed=(options.seed, 0), **draw)),
        list(joined(validation, held_out, seed=(options.seed, 1), **draw)),
    )


def _write_tokenizer(
    folder: Path, train: list[Utterance], validation: list[Utterance], options: Options
) -> tuple[int, dict[str, int]]:
    counts = characters(utterance.text for utterance in train)
    alphabet = {character for character, count in counts.items() if count >= options.min_count}
    if options.join:
        alphabet.add(" ")
    if options.vocabulary == "bpe":
        texts = ("".join(c for c in utterance.text if c in alphabet) for utterance in train)
        tokenizer = subword_tokenizer(texts, options.vocab_size)
    else:
        tokenizer = character_tokenizer(sorted(alphabet))
    tokenizer.save_pretrained(folder)
    counts += characters(utterance.text for utterance in validation)
    unknown = {character: count for character, count in sorted(counts.items()) if character not in alphabet}
    return len(tokenizer), unknown


def _write_manifests(folder: Path, made: Prepared, options: Options) -> None:
    writer = ManifestWriter(folder, options.output, options.relative)
    parts = {"train": (made.train, made.train_joined), "validation": (made.validation, made.validation_joined)}
    for name, (single, together) in parts.items():
        if options.join_apart:
            writer.write(f"{name}.jsonl", single)
            writer.write(f"{name}_joined.jsonl", together)
        else:
            writer.write(f"{name}.jsonl", [*single, *together])
