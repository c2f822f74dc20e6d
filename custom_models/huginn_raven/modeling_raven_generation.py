"""Generation: transformers' own with a cache that knows steps, and drafting by the model itself with fewer steps."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.configuration_utils import GenerationMode

from .modeling_raven_cache import CACHE, RavenCache
from .modeling_raven_exits import ExitRule

# What drafting heeds of a generation config, and settings of sampling, which say nothing where nothing is sampled.
_AGREEING = (
    *("bos_token_id", "pad_token_id", "eos_token_id", "max_length", "max_new_tokens", "transformers_version"),
    *("use_cache", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
)
# Of these 1 stands for what a config without them does; of all others 0, false or nothing.
_NEUTRAL_AT_ONE = ("num_beams", "num_beam_groups", "num_return_sequences", "repetition_penalty", "length_penalty")


class RavenGenerationMixin(GenerationMixin):
    """``generate`` of recurrent-depth models."""

    def _prepare_cache_for_generation(
        self: Any, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, *args: Any, **kwargs: Any
    ) -> None:
        if model_kwargs.get(CACHE) is None and generation_config.use_cache is not False:
            if generation_config.cache_implementation not in (None, "dynamic"):
                raise ValueError(
                    f"cache_implementation '{generation_config.cache_implementation}' does not know steps; leave it out"
                )
            model_kwargs[CACHE] = RavenCache(self.config, model_kwargs.get("cache_lookup", "latest"))
        else:
            parent: Any = super()
            parent._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, *args, **kwargs)
        if generation_mode == GenerationMode.ASSISTED_GENERATION:
            _check_checks(model_kwargs.get(CACHE), model_kwargs)

    @torch.no_grad()
    def generate(self: Any, *args: Any, draft_steps: int = 0, draft_tokens: int = 8, **kwargs: Any) -> Any:
        """Continues prompts, as transformers' ``generate`` does; all that follows ``num_steps`` in the arguments of
        ``forward`` may be given too.

        Args:
            args: as transformers has them.
            draft_steps: with 1 or more, ``generate_with_draft`` does the work; 0: every token runs all steps.
            draft_tokens: tokens it drafts at a time.
            kwargs: as transformers has them, and of ``forward``.
        """
        if draft_steps:
            return self.generate_with_draft(*args, draft_steps=draft_steps, draft_tokens=draft_tokens, **kwargs)
        parent: Any = super()
        return parent.generate(*args, **kwargs)

    @torch.no_grad()
    def generate_with_draft(
        self: Any,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        draft_steps: int,
        draft_tokens: int = 8,
        num_steps: int | None = None,
        accept: float = 1.0,
        state_seed: int = 0,
        cache_lookup: str = "latest",
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Greedy continuation: ``draft_steps`` of the core draft tokens, ``num_steps`` check several of them at once.

        A drafted token stays if all steps find it at least ``accept`` times as likely as their own favourite; so with
        1 the text is the one that greedy decoding with all steps gives. Rows of a batch [B, T], padded on the left, go
        on together, by as many tokens as the slowest takes. The other arguments are those of transformers' ``generate``
        and of ``forward``; the result is [B, T + new].

        Raises:
            ValueError: an argument or a setting of the generation config that drafting would not heed, or a
                ``cache_lookup`` that shows a token other steps where several are checked at once.
        """
        steps = self.config.mean_recurrence if num_steps is None else num_steps
        if not 1 <= draft_steps < steps or draft_tokens < 1 or not 0 < accept <= 1:
            raise ValueError(
                f"draft_steps {draft_steps} must lie below num_steps {steps}, draft_tokens {draft_tokens} be positive "
                f"and accept {accept} lie in (0, 1]"
            )
        ids = _prompt(inputs, kwargs.pop("input_ids", None))
        config = _settled(generation_config, self.generation_config, kwargs)
        ends = _numbers(config.eos_token_id, ids)
        fill = _numbers(config.pad_token_id, ids) if config.pad_token_id is not None else ends[:1]
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        cache = RavenCache(self.config, cache_lookup)
        _check_checks(cache, {})
        draft = _Draft(self, cache, mask, {"state_seed": state_seed})
        length = _length(config, ids.shape[1])
        done = torch.zeros(len(ids), 1, dtype=torch.bool, device=ids.device)
        new = draft.logits(ids, steps, keep=1).argmax(-1)
        while True:
            for column in new.split(1, dim=1):
                ids = torch.cat([ids, torch.where(done, fill, column) if len(fill) else column], dim=1)
                done = done | torch.isin(column, ends)
                if ids.shape[1] == length or bool(done.all()):
                    return ids
            count = min(draft_tokens, length - ids.shape[1])
            new = draft.checked(ids[:, -1:], count, draft_steps, steps, accept)


def _prompt(inputs: torch.Tensor | None, input_ids: torch.Tensor | None) -> torch.Tensor:
    """The prompts, by either of their names."""
    if (inputs is None) == (input_ids is None):
        raise ValueError("give the prompts as inputs or as input_ids")
    prompt = input_ids if inputs is None else inputs
    assert prompt is not None
    return prompt


def _settled(given: GenerationConfig | None, own: GenerationConfig, named: dict[str, Any]) -> GenerationConfig:
    """The generation config that named arguments, the one given and the model's own make, in this order.

    Raises:
        ValueError: it asks for anything but the likeliest token of each step, or an argument is none of a config.
    """
    config = copy.deepcopy(own if given is None else given)
    if given is not None:
        config.update(**own.to_dict(), defaults_only=True)
    others = config.update(**named)
    if config.use_cache is False:
        raise ValueError("use_cache = False: drafts are checked with a cache; leave out use_cache or draft_steps")
    if config.do_sample:
        raise ValueError("do_sample = True: drafting decodes greedily; leave draft_steps out or set do_sample to false")
    asked = {name: value for name, value in config.to_diff_dict().items() if name not in _AGREEING} | others
    if refused := [_shown(name, value) for name, value in asked.items() if not _says_nothing(name, value)]:
        raise ValueError(f"{', '.join(refused)}: not together with draft_steps; leave one of them out")
    return config


def _shown(name: str, value: Any) -> str:
    return f"{name} = {value!r}" if isinstance(value, int | float | str) else name


def _says_nothing(name: str, value: Any) -> bool:
    """Whether a setting leaves generation as it is without it."""
    if name.startswith("_") or value is None or value is False:
        return True
    if isinstance(value, int | float):
        return value == (1 if name in _NEUTRAL_AT_ONE else 0)
    return isinstance(value, list | tuple | dict) and not value


def _length(config: GenerationConfig, prompt: int) -> int:
    """Tokens of prompt and continuation; 20 new ones where nothing is said, as in transformers."""
    length = config.max_length if config.max_new_tokens is None else prompt + config.max_new_tokens
    length = prompt + 20 if length is None else length
    if length <= prompt:
        raise ValueError(f"a text of {length} tokens leaves none to write after a prompt of {prompt}; raise max_length")
    return length


def _check_checks(cache: Any, options: Mapping[str, Any]) -> None:
    """Refuses what makes a pass over several drafted tokens compute anything else than one pass for each."""
    if isinstance(cache, RavenCache) and not cache.one_by_one:
        raise ValueError(
            f"cache_lookup '{cache.lookup}' shows other steps where drafted tokens are checked together; use 'latest' "
            "or decode without drafts"
        )
    if options.get("continuous_thought"):
        raise ValueError("continuous_thought goes from token to token, so drafted ones cannot be checked together")
    rule = ExitRule(options.get("exit_criterion", "none"), None, 1, 1)
    if rule.exits and (rule.reads_logits or not options.get("exit_in_prefill", True)):
        raise ValueError(
            f"exit_criterion '{rule.criterion}' lets tokens stop elsewhere where drafted ones are checked together; "
            "use 'latent-diff' or 'cosine' with exit_in_prefill, or decode without drafts"
        )


class _Draft:
    """A model and the cache of a text that ends with one token more."""

    def __init__(self, model: Any, cache: RavenCache, mask: torch.Tensor, options: dict[str, Any]) -> None:
        self.model, self.cache, self.mask, self.options = model, cache, mask, options

    def logits(self, ids: torch.Tensor, steps: int, keep: int = 0) -> torch.Tensor:
        """The logits [B, T, V] of new tokens [B, T], which join the cache."""
        missing = self.cache.seen + ids.shape[1] - self.mask.shape[1]
        grown = torch.cat([self.mask, self.mask.new_ones(len(self.mask), max(missing, 0))], dim=1)
        mask = grown[:, : self.cache.seen + ids.shape[1]]
        given = {"cache": self.cache, "attention_mask": mask, "use_cache": True, **self.options}
        return self.model(input_ids=ids, num_steps=steps, logits_to_keep=keep, **given).logits

    def checked(self, last: torch.Tensor, count: int, few: int, all_steps: int, accept: float) -> torch.Tensor:
        """The next tokens [B, 1 ... count + 1]: those drafted that hold, and the one that follows them.

        Args:
            last: the text's last token [B, 1], not in the cache yet.
            count: tokens to draft.
            few: steps of a drafted token.
            all_steps: steps of a checked one.
            accept: share of the favourite's probability that a drafted token needs.
        """
        drafted = [last]
        for _ in range(count):
            drafted.append(self.logits(drafted[-1], few).argmax(-1))
        self.cache.clear_last_k_entries(count)
        text = torch.cat(drafted, dim=1)
        scores = self.logits(text, all_steps)  # [B, count + 1, V]
        needed = scores[:, :-1].amax(-1) + math.log(accept)
        held = scores[:, :-1].gather(-1, text[:, 1:, None]).squeeze(-1) >= needed
        kept = int(held.long().cumprod(1).sum(1).min())
        self.cache.clear_last_k_entries(count - kept)
        return torch.cat([text[:, 1 : kept + 1], scores[:, kept : kept + 1].argmax(-1)], dim=1)


def _numbers(ids: int | list[int] | None, like: torch.Tensor) -> torch.Tensor:
    """Token ids as a tensor."""
    return torch.tensor(
        [] if ids is None else [ids] if isinstance(ids, int) else ids, dtype=torch.long, device=like.device
    )
