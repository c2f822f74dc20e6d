"""Writes down what is said in recordings.

flame transcribe --model exp/spoken_digits/hf/latest RECORDING.wav
flame transcribe --model exp/librispeech/hf/latest --timestamps --decoder beam *.flac
"""

import json
import sys
import time

from transformers.utils import logging as hf_logging

from flame.cli import USAGE_ERROR
from flame.ctc.beam import BeamOptions
from flame.ctc.ngram import read_arpa
from flame.data.audio.decoding import AudioError
from flame.data.audio.recording import Part, Recording
from flame.errors import ConfigError
from flame.inference.recognizer import Recognizer, TimedWord, load_recognizer
from flame.utils.arguments import Arguments


def main(argv: list[str]) -> int:
    """Runs ``flame transcribe``."""
    options = _parser().parse_args(argv)
    if options.language_model and options.decoder != "beam":
        raise ConfigError("--language_model has no effect without --decoder beam")
    if min(options.segment, options.beam_width) <= 0 or options.overlap < 0:
        raise ConfigError("--segment and --beam_width must be above 0, --overlap at least 0")
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    beam = None
    if options.decoder == "beam":
        model = read_arpa(options.language_model) if options.language_model else None
        weight, bonus = options.language_model_weight, options.word_bonus
        beam = BeamOptions(options.beam_width, model=model, weight=weight, bonus=bonus)
    recognizer = load_recognizer(
        options.model,
        options.device,
        options.plugin_path,
        options.trust_remote_code,
        beam=beam,
        segment=options.segment,
        overlap=options.overlap,
    )
    failed = 0
    for path in options.recording:
        try:
            _transcribe(recognizer, path, options.json, options.timestamps, len(options.recording) > 1)
        except AudioError as error:  # of this file alone
            print(f"flame: error: {error}", file=sys.stderr)
            failed += 1
    return USAGE_ERROR if failed else 0


def _parser() -> Arguments:
    parser = Arguments("flame transcribe", (__doc__ or "").strip())
    parser.add_argument("recording", nargs="+", help="audio files: wav, flac, mp3, ogg")
    parser.add_argument("--model", required=True, help="a HuggingFace folder or hub id")
    parser.add_argument("--timestamps", action="store_true", help="a line for each word, with its times")
    parser.add_argument("--json", action="store_true", help="a JSON object for each recording")
    parser.add_argument("--decoder", choices=("greedy", "beam"), default="greedy", help="how labels are read (greedy)")
    parser.add_argument("--beam_width", type=int, default=16, help="texts that beam search keeps (16)")
    parser.add_argument("--language_model", default="", help="ARPA file of words, for beam search")
    parser.add_argument("--language_model_weight", type=float, default=0.5, help="what it counts (0.5)")
    parser.add_argument("--word_bonus", type=float, default=0.0, help="added for every word (0)")
    parser.add_argument("--segment", type=float, default=20.0, help="seconds heard at once in both directions (20)")
    parser.add_argument("--overlap", type=float, default=2.0, help="seconds heard on both sides of these (2)")
    parser.add_argument("--device", default="", help="where to run; the accelerator, if there is one")
    parser.add_argument("--plugin_path", default="", help="folder of a family outside the repository")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code in the model's folder")
    return parser


def _transcribe(recognizer: Recognizer, path: str, as_json: bool, timestamps: bool, is_one_of_many: bool) -> None:
    """Shows what is said in a file, word by word as it becomes certain, and how fast that went."""
    seconds = Recording((Part(path),)).duration
    started = time.perf_counter()
    found: list[TimedWord] = []
    if is_one_of_many and not as_json:
        print(f"{path}: ", end="\n" if timestamps else "", flush=True)
    is_one_line = not (as_json or timestamps)
    try:
        for word in recognizer.transcribe(path):
            found.append(word)
            if is_one_line:
                print(word.text, end=" ", flush=True)
            elif not as_json:
                print(f"{word.start:9.2f} {word.stop:9.2f}  {word.text}", flush=True)
    finally:
        if is_one_line:
            print(flush=True)  # also before the error of a file that breaks off
    took = time.perf_counter() - started
    if as_json:
        words = [word._asdict() for word in found]
        text = " ".join(word.text for word in found)
        record = {"file": path, "text": text, "seconds": seconds, "real_time_factor": took / seconds, "words": words}
        print(json.dumps(record, ensure_ascii=False), flush=True)
        return
    speed = f"{seconds:.1f} s of sound in {took:.2f} s: real-time factor {took / seconds:.4f}"
    print(f"  {speed}", file=sys.stderr)
