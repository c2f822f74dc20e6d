"""What transformers' ``generate`` takes and has a meaning where masks are filled in."""

from dataclasses import dataclass
from typing import Any

import torch

_LENGTH = 128  # new tokens where nothing is said
_READ = ("max_new_tokens", "max_length", "do_sample", "temperature", "eos_token_id", "pad_token_id")
# Of a generation config: tokens that nothing here writes, and the version that wrote it.
_IDLE = ("bos_token_id", "transformers_version")
# Of these 1 stands for what generation without them does; of all others 0, false or nothing.
_NEUTRAL_AT_ONE = (
    *("num_beams", "num_beam_groups", "num_return_sequences", "repetition_penalty", "length_penalty", "top_p"),
    *("typical_p", "encoder_repetition_penalty"),
)


@dataclass
class Request:
    """What is asked for, whichever way it was said."""

    prompts: torch.Tensor  # [B, P]
    new_tokens: int
    temperature: float
    end_ids: list[int]
    pad_id: int


def read_request(
    config: Any, input_ids: torch.Tensor | None, named: dict[str, Any], others: dict[str, Any], known: str
) -> Request:
    """Brings the arguments of ``generate`` together; what is named comes before the generation config.

    Args:
        config: the model's, for the ids of tokens that are not given.
        input_ids: prompts [B, P], or None.
        named: the arguments ``max_new_tokens`` and ``temperature``, None where not given.
        others: further arguments, which transformers' ``generate`` has.
        known: the arguments that exist, for the message.

    Raises:
        ValueError: no prompts or two, two lengths, a temperature that contradicts ``do_sample``, or an argument that
            has no meaning here.
    """
    others = {name: value for name, value in others.items() if value is not None}
    inputs, given = others.pop("inputs", None), others.pop("generation_config", None)
    if (input_ids is None) == (inputs is None):
        raise ValueError("give the prompts as input_ids or as inputs, one of them")
    prompts = inputs if input_ids is None else input_ids
    assert prompts is not None
    asked = {name: others.pop(name) for name in _READ if name in others}
    asked |= {name: value for name, value in named.items() if value is not None}
    settings = {} if given is None else {n: v for n, v in given.to_diff_dict().items() if n not in _IDLE}
    refused = [name for name, value in {**settings, **others}.items() if name not in _READ and _acts(name, value)]
    if refused:
        raise ValueError(f"generate() has no {', '.join(refused)} for masked diffusion; it has {known}")
    if "max_new_tokens" in asked and "max_length" in asked:
        raise ValueError("max_new_tokens and max_length both say how long the text becomes; give one")
    lengths = asked if asked.keys() & {"max_new_tokens", "max_length"} else settings
    new = lengths.get("max_new_tokens")
    if new is None:
        new = _LENGTH if lengths.get("max_length") is None else _rest(lengths["max_length"], prompts.shape[1])
    asked = {name: value for name, value in settings.items() if name in _READ and value is not None} | asked
    ends = _listed(asked.get("eos_token_id", config.eos_token_id))
    pad = asked.get("pad_token_id", config.pad_token_id)
    return Request(prompts, new, _temperature(asked), ends, pad if pad is not None else (ends or [0])[0])


def _temperature(asked: dict[str, Any]) -> float:
    """0 for the likeliest token; where sampling is asked for and nothing else, 1."""
    sampled, temperature = asked.get("do_sample"), asked.get("temperature")
    if sampled is None:
        return 0.0 if temperature is None else temperature
    if temperature is None:
        return float(bool(sampled))
    if bool(sampled) != (temperature > 0):
        raise ValueError(
            f"do_sample = {sampled} contradicts temperature = {temperature}; give one, or 0 for the likeliest"
        )
    return temperature


def _rest(length: int, prompt: int) -> int:
    if length <= prompt:
        raise ValueError(
            f"max_length = {length} is no longer than the prompt of {prompt}; raise it or give max_new_tokens"
        )
    return length - prompt


def _acts(name: str, value: Any) -> bool:
    """Whether a setting changes what is generated."""
    if name.startswith("_") or value is None or value is False:
        return False
    if isinstance(value, int | float):
        return value != (1 if name in _NEUTRAL_AT_ONE else 0)
    return not isinstance(value, list | tuple | dict) or bool(value)


def _listed(ids: int | list[int] | None) -> list[int]:
    return [ids] if isinstance(ids, int) else list(ids or [])
