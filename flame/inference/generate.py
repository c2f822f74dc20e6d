"""Continues prompts with any HuggingFace folder.

flame generate --model exp/quickstart/hf/latest --prompt "def "
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextStreamer,
)
from transformers.utils import logging as hf_logging

from flame.errors import ConfigError, FlameError
from flame.plugin import load_plugin
from flame.utils.arguments import Arguments


def main(argv: list[str]) -> int:
    """Runs ``flame generate``; the text appears as it is made."""
    parser = Arguments("flame generate", (__doc__ or "").strip())
    parser.add_argument("--model", required=True, help="a HuggingFace folder or hub id")
    parser.add_argument("--prompt", default="", help="the text to continue; '-' reads it from standard input")
    parser.add_argument("--max_new_tokens", type=int, default=200)
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0 always takes the likeliest token (default 0.8)"
    )
    parser.add_argument("--top_k", type=int, default=50, help="sample among the k likeliest tokens; 0 among all")
    parser.add_argument("--top_p", type=float, default=1.0, help="sample among the likeliest tokens of this joint mass")
    parser.add_argument("--num_samples", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="", help="cpu, cuda ... (default: the accelerator if there is one)")
    parser.add_argument("--plugin_path", default="", help="folder of a family outside the repository")
    parser.add_argument("--trust_remote_code", action="store_true", help="run modeling code that lies in the folder")
    options = parser.parse_args(argv)
    _check(options)

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    model, tokenizer = load(options.model, options.device, options.plugin_path, options.trust_remote_code)
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    torch.manual_seed(options.seed)
    for index in range(options.num_samples):
        if index:
            print("\n---")
        generate(model, tokenizer, prompt, options)
    return 0


def _check(options: Any) -> None:
    if options.max_new_tokens < 1 or options.num_samples < 1:
        raise ConfigError("--max_new_tokens and --num_samples must be at least 1")
    if options.temperature < 0 or options.top_k < 0 or not 0 < options.top_p <= 1:
        raise ConfigError("--temperature and --top_k must not be negative, --top_p lies in (0, 1]")


def load(
    name: str, device: str = "", plugin_path: str = "", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model in its stored dtype and its tokenizer.

    Args:
        name: a HuggingFace folder or hub id.
        device: where to put it; the accelerator, if there is one, when empty.
        plugin_path: see ``load_plugin``.
        trust_remote_code: whether code in the folder may run; families flame knows need none.

    Raises:
        ConfigError: no model there, or one whose family is unknown.
    """
    folder, cached = Path(name), True
    if (folder / "config.json").is_file():
        model_type = json.loads((folder / "config.json").read_text()).get("model_type", "")
        if not trust_remote_code:
            cached = load_plugin(model_type, plugin_path).decodes_with_cache
    elif folder.exists() or name.startswith((".", "/")) or name.count("/") > 1:
        raise ConfigError(f"--model '{name}' holds no config.json; give an exported folder such as exp/RUN/hf/latest")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", trust_remote_code=trust_remote_code)
    except FlameError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model '{name}' cannot be loaded: {error}") from error
    if not cached:
        model.config.use_cache = model.generation_config.use_cache = False
    model.to(torch.device(device) if device else torch.accelerator.current_accelerator() or torch.device("cpu"))  # type: ignore[arg-type]
    return model.eval(), tokenizer


def generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, options: Any) -> None:
    """Streams one continuation of ``prompt`` to standard output.

    Spaces at the end of a prompt are given back to the model: most tokenizers put a space in front of a word, so a
    model has never seen one alone, and "def " would be continued with something else than a name.
    """
    text = prompt.rstrip(" ")
    spaces = prompt[len(text) :]
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    start = [] if first is None else [first]
    ids = torch.tensor([start + tokenizer(text, add_special_tokens=False).input_ids], dtype=torch.long)
    if not ids.numel():
        raise ConfigError("--prompt is empty and the tokenizer has no token to begin a text with; give a prompt")
    processors = LogitsProcessorList([BeginsWith(tokenizer, spaces, ids.shape[1])] if spaces else [])
    sampling = {"do_sample": False}
    if options.temperature > 0:
        sampling = {
            "do_sample": True,
            "temperature": options.temperature,
            "top_k": options.top_k,
            "top_p": options.top_p,
        }
    print(text, end="", flush=True)
    ids = ids.to(model.device)
    model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=options.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        logits_processor=processors,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        **sampling,
    )


class BeginsWith(LogitsProcessor):
    """Allows only first tokens whose text begins with ``start``; all tokens if there are none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: str, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        texts = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
        self.refused = torch.tensor([not text.startswith(start) for text in texts])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Changes the scores [B, V] of the first new token."""
        if input_ids.shape[1] > self.prompt_tokens or self.refused.all():
            return scores
        refused = torch.ones(scores.shape[-1], dtype=torch.bool)
        refused[: len(self.refused)] = self.refused
        return scores.masked_fill(refused.to(scores.device), -torch.inf)
