"""Generation: transformers' own with a cache that knows steps, and drafting by the model itself with fewer steps."""

import math
from typing import Any

import torch
from transformers import GenerationMixin

from .modeling_raven_cache import RavenCache


class RavenGenerationMixin(GenerationMixin):
    """``generate`` of recurrent-depth models."""

    def _prepare_cache_for_generation(
        self: Any, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, *args: Any, **kwargs: Any
    ) -> None:
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            if generation_config.cache_implementation not in (None, "dynamic"):
                raise ValueError(
                    f"cache_implementation '{generation_config.cache_implementation}' does not know steps; leave it out"
                )
            lookup = model_kwargs.get("cache_lookup", "latest")
            model_kwargs["past_key_values"] = RavenCache(self.config, lookup)
            return
        parent: Any = super()
        parent._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, *args, **kwargs)

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
        input_ids: torch.Tensor,
        max_new_tokens: int,
        draft_steps: int,
        draft_tokens: int = 8,
        num_steps: int | None = None,
        attention_mask: torch.Tensor | None = None,
        accept: float = 1.0,
        state_seed: int = 0,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        do_sample: bool = False,
        cache_lookup: str = "latest",
    ) -> torch.Tensor:
        """Greedy continuation: ``draft_steps`` of the core draft tokens, ``num_steps`` check several of them at once.

        A drafted token stays if all steps find it at least ``accept`` times as likely as their own favourite; so with
        1 the text is the one that greedy decoding with all steps gives. Rows of a batch [B, T], padded on the left, go
        on together, by as many tokens as the slowest takes. The other arguments are those of transformers' ``generate``
        and of ``forward``; the result is [B, T + new].
        """
        steps = num_steps or self.config.mean_recurrence
        if not 1 <= draft_steps < steps or draft_tokens < 1 or not 0 < accept <= 1:
            raise ValueError(
                f"draft_steps {draft_steps} must lie below num_steps {steps}, draft_tokens {draft_tokens} be positive "
                f"and accept {accept} lie in (0, 1]"
            )
        if do_sample:
            raise ValueError("drafting decodes greedily; leave draft_steps out or set do_sample to false")
        ends = _numbers(self.generation_config.eos_token_id if eos_token_id is None else eos_token_id, input_ids)
        pad = self.generation_config.pad_token_id if pad_token_id is None else pad_token_id
        fill = _numbers(pad, input_ids) if pad is not None else ends[:1]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        draft = _Draft(self, RavenCache(self.config, cache_lookup), mask, {"state_seed": state_seed})
        length, ids = input_ids.shape[1] + max_new_tokens, input_ids
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


class _Draft:
    """A model and the cache of a text that ends with one token more."""

    def __init__(self, model: Any, cache: RavenCache, mask: torch.Tensor, options: dict[str, Any]) -> None:
        self.model, self.cache, self.mask, self.options = model, cache, mask, options

    def logits(self, ids: torch.Tensor, steps: int, keep: int = 0) -> torch.Tensor:
        """The logits [B, T, V] of new tokens [B, T], which join the cache."""
        missing = self.cache.seen + ids.shape[1] - self.mask.shape[1]
        grown = torch.cat([self.mask, self.mask.new_ones(len(self.mask), max(missing, 0))], dim=1)
        mask = grown[:, : self.cache.seen + ids.shape[1]]
        given = {"past_key_values": self.cache, "attention_mask": mask, "use_cache": True, **self.options}
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
