"""One token after the other, from left to right, by transformers' own ``generate``."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from flame.errors import ConfigError
from flame.inference.batches import honours_padding, left_padded
from flame.inference.decoders.base import Completion, Decoder
from flame.inference.options import Options, check_temperature, option
from flame.inference.positions import check_positions, learned_positions
from flame.inference.prompts import Prompt
from flame.inference.text import TextStream

_ONLY_SAMPLING = ("top_k", "top_p", "min_p")
# A folder's generation config may ask for another way to search, for more rows, another result, or cuts and ends that
# have no option here.
ONE_ROW_EACH: dict[str, Any] = {
    **{"num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "diversity_penalty": 0.0},
    **dict.fromkeys(("constraints", "force_words_ids", "penalty_alpha", "dola_layers", "use_mtp")),
    **dict.fromkeys(("prompt_lookup_num_tokens", "assistant_early_exit", "token_healing", "prefill_chunk_size")),
    **dict.fromkeys(("return_dict_in_generate", "output_scores", "output_logits"), False),
    **dict.fromkeys(("output_attentions", "output_hidden_states"), False),
    **{"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None},
    **dict.fromkeys(("stop_strings", "max_time", "guidance_scale")),
}


@dataclass
class AutoregressiveOptions(Options):
    """How the next token is chosen."""

    min_new_tokens: int = option(0, "tokens before the text may end by itself", low=0)
    temperature: float = option(0.8, "0 always takes the likeliest token", low=0)
    top_k: int = option(50, "sample among the k likeliest tokens; 0: among all", low=0)
    top_p: float = option(1.0, "sample among the likeliest tokens of this joint mass", low=1e-9, high=1)
    min_p: float = option(0.0, "sample among tokens at least this share as likely as the likeliest", low=0, high=1)
    repetition_penalty: float | None = option(None, "above 1 makes tokens that occurred less likely", low=1e-9)

    def check(self, given: Iterable[str] = ()) -> None:
        """See ``Options.check``."""
        super().check(given)
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(f"--min_new_tokens {self.min_new_tokens} exceeds --max_new_tokens {self.max_new_tokens}")
        check_temperature(self.temperature)
        if not self.temperature and (idle := [name for name in _ONLY_SAMPLING if name in given]):
            raise ConfigError(f"--{idle[0]} has no effect at --temperature 0; leave one of them out")

    @property
    def deterministic(self) -> bool:
        """See ``Options.deterministic``."""
        return not self.temperature

    def sampling(self) -> dict[str, Any]:
        """Arguments of transformers' ``generate``."""
        chosen: dict[str, Any] = {"do_sample": False}
        if self.temperature:
            chosen = {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
            chosen |= {"min_p": self.min_p or None}
        if self.repetition_penalty is not None:
            chosen["repetition_penalty"] = self.repetition_penalty
        if self.min_new_tokens:
            chosen["min_new_tokens"] = self.min_new_tokens
        return chosen


class AutoregressiveDecoder(Decoder):
    """Runs ``model.generate``: greedy decoding gives exactly its tokens."""

    Options = AutoregressiveOptions
    gives_spaces_back = True

    def __init__(self, engine: Any, options: AutoregressiveOptions, stops: Sequence[str] = ()) -> None:
        super().__init__(engine, options, stops)
        self._pads: bool | None = None
        self._positions = learned_positions(engine.model)

    def pads(self) -> bool:
        """True where a padded row has the logits of the row alone, which is tried once on a scaled-down model."""
        if self._pads is None:
            self._pads = honours_padding(self.engine)
        return self._pads

    def run(self, prompts: Sequence[Prompt], show: Callable[[str], None] | None = None) -> list[Completion]:
        """See ``Decoder.run``."""
        engine, options = self.engine, self.options
        ids, mask = left_padded([prompt.ids for prompt in prompts], engine.pad, engine.model.device)
        check_positions(self._positions, ids.shape[1], options.max_new_tokens)
        written = self.written(
            prompts,
            show,
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=options.max_new_tokens,
            pad_token_id=engine.pad,
            eos_token_id=list(engine.ends) or None,
        )
        new = written[:, ids.shape[1] :].tolist()
        return [self.completion(prompt, tokens) for prompt, tokens in zip(prompts, new, strict=True)]

    def written(self, prompts: Sequence[Prompt], show: Callable[[str], None] | None, **arguments: Any) -> torch.Tensor:
        """Runs ``model.generate`` and returns prompts with continuations [B, T + N].

        Args:
            prompts: of the rows.
            show: see ``run``.
            arguments: of ``generate``; further ones are added.
        """
        rows = [self.stream(prompt) for prompt in prompts]
        # Reading along costs a look at every token on the host, so only where somebody has to know.
        follow = [_Follow(rows)] if self.stops else []
        return self.engine.model.generate(  # type: ignore[operator]
            logits_processor=self._processors(prompts, arguments["input_ids"].shape[1]),
            stopping_criteria=StoppingCriteriaList(follow),
            streamer=self.streamer(prompts[0], show) if show else None,
            **ONE_ROW_EACH,
            **self.options.sampling(),
            **arguments,
        )

    def _processors(self, prompts: Sequence[Prompt], length: int) -> LogitsProcessorList:
        if not any(prompt.spaces for prompt in prompts):
            return LogitsProcessorList()
        nothing = torch.zeros(len(self.engine.tokenizer), dtype=torch.bool)
        refused = [self.encoder.refused(prompt.spaces) if prompt.spaces else nothing for prompt in prompts]
        return LogitsProcessorList([BeginsWith(torch.stack(refused), length)])


class BeginsWith(LogitsProcessor):
    """Keeps some tokens from being the first new one.

    Args:
        refused: per row, which tokens [B, V].
        length: of the prompt.
    """

    def __init__(self, refused: torch.Tensor, length: int) -> None:
        self._refused = refused
        self._length = length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Changes the scores [B, V] of the first new token."""
        if input_ids.shape[1] > self._length:
            return scores
        refused = self._refused.any(1, keepdim=True).repeat(1, scores.shape[-1])  # ids without a token too
        refused[:, : self._refused.shape[1]] = self._refused
        return scores.masked_fill(refused.to(scores.device), -torch.inf)


class _Follow(StoppingCriteria):
    """Ends rows whose text holds a string to stop at."""

    def __init__(self, rows: list[TextStream]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            row.push(token)
        return torch.tensor([bool(row.stopped) for row in self._rows], device=input_ids.device)


DECODER = AutoregressiveDecoder
