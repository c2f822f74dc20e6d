"""Continues prompts with any HuggingFace folder, by the decoder that its family is made for.

flame generate --model exp/quickstart/hf/latest --prompt "def "
flame generate --model exp/quickstart/hf/latest --prompt_file prompts.jsonl --num_samples 4 --json
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from transformers.utils import logging as hf_logging

from flame.errors import ConfigError
from flame.inference.batches import in_batches
from flame.inference.decoders.base import Completion, Decoder, load_decoder, objectives
from flame.inference.engine import family_of, load, load_engine
from flame.inference.options import add_arguments, choose
from flame.inference.prompts import Prompt, check_characters, read_prompts
from flame.utils.arguments import Arguments

__all__ = ["load", "main"]

_BETWEEN = "\n---"
_WINDOW = 8  # batches that are read before the first is decoded, so that like lengths can meet


def main(argv: list[str]) -> int:
    """Runs ``flame generate``."""
    kinds = {objective: load_decoder(objective).Options for objective in objectives()}
    parser = _parser()
    add_arguments(parser.add_argument_group("decoding", "[...]: for families of these objectives"), kinds)
    given = vars(parser.parse_args(argv))
    common = argparse.Namespace(**{name: given.pop(name) for name in _COMMON})
    _check(common)
    reserved = _reserved() if common.json else ()
    texts = common.prompt or ([] if common.prompt_file else [""])
    records = list(read_prompts(texts, common.prompt_file, reserved))

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    where = common.plugin_path, common.trust_remote_code
    family = family_of(common.model, *where)
    options = choose(given, kinds, family.objective, family.model_type)  # before the weights, which may be many
    if common.num_samples > 1 and options.deterministic:
        raise ConfigError(
            f"--num_samples {common.num_samples} would be as many times the same text, since nothing is drawn; "
            "add --temperature 0.8, or leave it out"
        )
    engine = load_engine(common.model, common.device, *where)
    decoder = load_decoder(family.objective)(engine, options, common.stop)
    torch.manual_seed(common.seed)
    if len(records) == 1 and not common.json:
        _stream(decoder, decoder.encoder.encode(records[0]), common.num_samples)
        return 0
    for index, (prompt, sample, completion) in enumerate(_all(decoder, records, common.num_samples, common.batch_size)):
        if common.json:
            print(json.dumps(_record(prompt, sample, completion), ensure_ascii=False), flush=True)
        else:
            print((_BETWEEN + "\n" if index else "") + prompt.text + completion.text, flush=True)
    return 0


_COMMON = (
    *("model", "prompt", "prompt_file", "num_samples", "batch_size", "stop", "seed", "json"),
    *("device", "plugin_path", "trust_remote_code"),
)


def _parser() -> Arguments:
    parser = Arguments("flame generate", (__doc__ or "").strip())
    parser.add_argument("--model", required=True, help="a HuggingFace folder or hub id")
    parser.add_argument("--prompt", action="append", help="a text to continue, '-' for standard input; may be repeated")
    parser.add_argument("--prompt_file", default="", help='JSON lines: "text" or {"prompt": "text"}; - for stdin')
    parser.add_argument("--num_samples", type=int, default=1, help="continuations of each prompt")
    parser.add_argument("--batch_size", type=int, default=8, help="rows decoded together at most (default 8)")
    parser.add_argument("--stop", action="append", default=[], help="a string to end before; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default 0)")
    parser.add_argument("--json", action="store_true", help="an object per continuation")
    parser.add_argument("--device", default="", help="cpu, cuda ... (default: the accelerator if there is one)")
    parser.add_argument("--plugin_path", default="", help="folder of a family outside the repository")
    parser.add_argument("--trust_remote_code", action="store_true", help="run modeling code that lies in the folder")
    return parser


def _check(common: argparse.Namespace) -> None:
    for name in ("num_samples", "batch_size"):
        if getattr(common, name) < 1:
            raise ConfigError(f"--{name} {getattr(common, name)} must be at least 1")
    if not 0 <= common.seed < 2**63:
        raise ConfigError(f"--seed {common.seed} is out of range; it is from 0 to 2^63 - 1")
    if "" in common.stop:
        raise ConfigError("--stop is empty, which every text begins with; leave it out")
    for stop in common.stop:
        check_characters(stop, "--stop")


def _stream(decoder: Decoder, prompt: Prompt, samples: int) -> None:
    """Shows the text as it is made, one sample after the other."""
    for index in range(samples):
        decoder.run([prompt], _Shown(prompt, f"{_BETWEEN}\n" if index else ""))
        print()


class _Shown:
    """Prints a prompt, once there is something to follow it, and the stream."""

    def __init__(self, prompt: Prompt, before: str) -> None:
        self._waiting = before + prompt.text

    def __call__(self, piece: str) -> None:
        print(self._waiting + piece, end="", flush=True)
        self._waiting = ""


def _all(
    decoder: Decoder, records: list[dict[str, Any]], samples: int, size: int
) -> Iterator[tuple[Prompt, int, Completion]]:
    """All samples of all prompts in order: (prompt, number of the sample, completion)."""
    rows = [(record, sample) for record in records for sample in range(samples)]
    for start in range(0, len(rows), size * _WINDOW):
        window = rows[start : start + size * _WINDOW]
        prompts = [decoder.encoder.encode(record) for record, _ in window]
        mixed = len({len(prompt.ids) for prompt in prompts}) > 1
        done: dict[int, Completion] = {}
        for batch in in_batches(prompts, size, mixed and size > 1 and decoder.pads()):
            made = decoder.run([prompts[index] for index in batch])
            done |= dict(zip(batch, made, strict=True))
        for index, (_, sample) in enumerate(window):
            yield prompts[index], sample, done[index]


def _reserved() -> set[str]:
    """The keys that ``_record`` writes, besides the prompt."""
    names = {item.name for item in fields(Completion)} - {"figures"}
    return names.union({"sample"}, *(load_decoder(objective).figures for objective in objectives()))


def _record(prompt: Prompt, sample: int, completion: Completion) -> dict[str, Any]:
    record = {**prompt.values, "prompt": prompt.text, "sample": sample, "text": completion.text}
    record |= {"tokens": completion.tokens, "finish": completion.finish, **completion.figures}
    return record | ({"stop": completion.stop} if completion.stop else {})
