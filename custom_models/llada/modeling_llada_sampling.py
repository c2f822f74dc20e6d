"""Generation by filling masks in, block by block (LLaDA, https://arxiv.org/abs/2502.09992, section 2.4), with a cache
of keys and values within a block and several tokens a step where the model is sure (Fast-dLLM, arXiv 2505.22618)."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from .modeling_llada_arguments import read_request

_REMASKING = ("low_confidence", "random")
_CACHES = ("prefix", "dual")
_BLOCK = 32  # tokens
_OF_TRANSFORMERS = ("inputs", "max_length", "do_sample", "eos_token_id", "pad_token_id", "generation_config")


class BlockCache:
    """Keys and values of whole sequences, of which a pass over some positions replaces those of these positions.

    They are what they were at the last pass over everything, so a pass that uses them is an approximation: in a
    bidirectional model every key depends on every token.
    """

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []  # of each layer, [B, H, T, D]
        self.values: list[torch.Tensor] = []
        self.window = slice(None)
        """The positions that the coming pass is about."""

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a layer attends to: [B, H, T, D]."""
        if layer == len(self.keys):
            self.keys.append(key)
            self.values.append(value)
        else:
            self.keys[layer][:, :, self.window] = key
            self.values[layer][:, :, self.window] = value
        return self.keys[layer], self.values[layer]

    def get_query_offset(self, layer: int = 0) -> int:
        """Where the queries begin; masks here do not depend on it."""
        return 0

    def get_mask_sizes(self, queries: int, layer: int = 0) -> tuple[int, int]:
        """Number and first position of the keys."""
        return (self.keys[0].shape[2] if self.keys else queries), 0


@dataclass
class Plan:
    """How masks are filled in; see ``SamplingMixin.generate``."""

    length: int
    block: int
    steps: int  # of each block
    temperature: float
    cfg_scale: float
    remasking: str
    threshold: float | None
    cache: str | None
    refresh: int
    suppress_eos: bool
    stop_at_eos: bool
    mask_id: int
    end_ids: list[int]
    pad_id: int

    @property
    def counts(self) -> list[int]:
        """How many tokens of a block each of its steps fills in: all alike, the first ones one more."""
        each, more = divmod(self.block, self.steps)
        return [each + (step < more) for step in range(self.steps)]

    @property
    def forbidden(self) -> list[int]:
        """Tokens that are never filled in."""
        return [self.mask_id, *(self.end_ids if self.suppress_eos else [])]


def make_plan(
    config: Any,
    gen_length: int,
    steps: int | None,
    block_length: int | None,
    threshold: float | None,
    **rest: Any,
) -> Plan:
    """Checks the options of ``generate``.

    Raises:
        ValueError: lengths or steps that do not divide, or an option that has no such value.
    """
    if gen_length < 1:
        raise ValueError(f"max_new_tokens = {gen_length}: give at least 1")
    if config.block_length:
        _check_learnt(config.block_length, gen_length, block_length)
        rest["cache"] = rest["cache"] or "dual"  # exact here: finished blocks see nothing of later ones
        block_length = config.block_length
    block = min(_BLOCK, gen_length) if block_length is None else block_length
    if block < 1 or (block_length is not None and gen_length % block):
        raise ValueError(f"block_length = {block} does not divide max_new_tokens = {gen_length}; choose one that does")
    blocks = -(-gen_length // block)  # the last may be shorter
    if threshold is not None and steps is not None:
        raise ValueError(f"steps = {steps} and threshold = {threshold} both say how many tokens to commit; give one")
    if threshold is not None and rest["remasking"] == "random":
        raise ValueError(f"threshold = {threshold} keeps the likeliest tokens and remasking = 'random' any; give one")
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold = {threshold} is no probability; choose one in (0, 1], such as 0.9")
    steps = blocks * block if steps is None else steps
    if steps % blocks or not blocks <= steps <= blocks * block:
        raise ValueError(
            f"steps = {steps} cannot be shared by {blocks} blocks of {block}; choose a multiple of {blocks} up to "
            f"{blocks * block}, or another block_length"
        )
    if rest["remasking"] not in _REMASKING:
        raise ValueError(f"remasking = {rest['remasking']!r}; choose one of {', '.join(_REMASKING)}")
    if rest["cache"] not in (None, *_CACHES):
        raise ValueError(f"cache = {rest['cache']!r}; choose None or one of {', '.join(_CACHES)}")
    if not rest["temperature"] >= 0 or not rest["cfg_scale"] >= 0 or rest["refresh"] < 0:
        raise ValueError("temperature, cfg_scale and refresh cannot be negative")
    if rest["refresh"] and rest["cache"] is None:
        raise ValueError(f"refresh = {rest['refresh']} needs a cache; choose cache = 'prefix' or 'dual'")
    own = {"mask_id": _mask_id(config), "threshold": threshold}
    return Plan(length=gen_length, block=block, steps=steps // blocks, **own, **rest)


def _check_learnt(learnt: int, length: int, asked: int | None) -> None:
    """Refuses other blocks than those that a model with blocks was trained with."""
    if asked not in (None, learnt):
        raise ValueError(f"block_length = {asked}: this model was trained with blocks of {learnt}; leave it out")
    if length % learnt:
        raise ValueError(
            f"max_new_tokens = {length} is no multiple of {learnt}, the block of this model; "
            f"give {-(-length // learnt) * learnt}"
        )


class SamplingMixin:
    """``generate`` of a masked diffusion model."""

    @torch.no_grad()
    def generate(
        self: Any,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        max_new_tokens: int | None = None,
        steps: int | None = None,
        block_length: int | None = None,
        temperature: float | None = None,
        cfg_scale: float = 0.0,
        remasking: str = "low_confidence",
        threshold: float | None = None,
        cache: str | None = None,
        refresh: int = 0,
        suppress_eos: bool = False,
        stop_at_eos: bool = True,
        generator: torch.Generator | None = None,
        streamer: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Continues prompts.

        Args:
            input_ids: prompts [B, P], padded on the left; their tokens never change, whatever they are.
            attention_mask: [B, P], 0 where there is padding.
            max_new_tokens: N, the tokens that are filled in after each prompt; None: 128.
            steps: passes through the model over all blocks; None: one for each token.
            block_length: tokens filled in before those to their right are begun; None: the config's, or 32, of which
                the last block may have less.
            temperature: of the softmax that tokens are drawn from; 0, or None, takes the likeliest.
            cfg_scale: w of classifier-free guidance: logits u + (w + 1)(c - u), u of the masked prompt; 0: none.
            remasking: which of the drawn tokens stay: ``low_confidence`` keeps the likeliest, ``random`` any.
            threshold: keep all tokens likelier than this, and at least one, instead of a number given by ``steps``.
            cache: ``prefix`` computes only the block and what follows it, ``dual`` only the block, with keys and values
                of the block's first pass for the rest. With ``config.block_length`` always ``dual``, which is exact.
            refresh: renew the cache after so many steps; 0: once a block; 1 computes what no cache does.
            suppress_eos: never draw the end-of-text token.
            stop_at_eos: pad each row after its first end-of-text token, and skip blocks that no row needs.
            generator: of the random draws, on the model's device.
            streamer: receives the prompts, then each block that is complete, by ``put``, and ``end``.
            kwargs: as transformers has them: ``inputs``, ``max_length``, ``do_sample`` (temperature 1 unless given),
                ``eos_token_id``, ``pad_token_id``, ``generation_config`` with these and the above.

        Returns:
            [B, P + N], prompts included, without a mask outside of the prompts.

        Raises:
            ValueError: options that do not go together; the message says which to change.
        """
        named = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        asked = read_request(self.config, input_ids, named, kwargs, _ARGUMENTS)
        plan = make_plan(
            self.config, asked.new_tokens, steps, block_length, threshold, temperature=asked.temperature,
            cfg_scale=cfg_scale, remasking=remasking, cache=cache, refresh=refresh, suppress_eos=suppress_eos,
            stop_at_eos=stop_at_eos, end_ids=asked.end_ids, pad_id=asked.pad_id,
        )  # fmt: skip
        ids, mask = _canvas(asked.prompts, attention_mask, plan.length, plan.mask_id)
        return _fill_all(_Passes(self, plan, ids, mask, asked.prompts.shape[1]), generator, streamer)


_ARGUMENTS = ", ".join((*list(inspect.signature(SamplingMixin.generate).parameters)[1:-1], *_OF_TRANSFORMERS))


def _fill_all(passes: "_Passes", generator: torch.Generator | None, streamer: Any) -> torch.Tensor:
    """Fills in the blocks of a canvas from left to right; returns the canvas."""
    ids, plan = passes.ids, passes.plan
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    if streamer is not None:
        streamer.put(ids[:, : passes.first].cpu())
    for start in range(passes.first, ids.shape[1], plan.block):
        block = slice(start, min(start + plan.block, ids.shape[1]))
        _fill(passes, block, generator)
        if plan.stop_at_eos:
            done = _pad_after_end(ids, block, done, plan)
        if streamer is not None:
            streamer.put(ids[:, block].cpu())
        if done.all():
            ids[:, block.stop :] = plan.pad_id
            break
    if streamer is not None:
        streamer.end()
    return ids


class _Passes:
    """Passes through the model over a canvas that is being filled in."""

    def __init__(self, model: Any, plan: Plan, ids: torch.Tensor, mask: torch.Tensor | None, first: int) -> None:
        self.model, self.plan, self.ids, self.mask, self.first = model, plan, ids, mask, first
        self.cache: BlockCache | None = None
        self.positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)  # [1, T]
        if mask is not None:
            self.positions = (mask.cumsum(1) - 1).clamp(min=0)  # [B, T]

    def logits(self, block: slice, fresh: bool) -> torch.Tensor:
        """Logits of a block, [B, N, V] in float32; ``fresh`` where cached keys and values are to be renewed."""
        in_blocks = self.model.config.block_length > 0
        seen = block.stop if in_blocks else self.ids.shape[1]
        ids, positions = self.ids[:, :seen], self.positions[:, :seen]
        mask = self.mask if self.mask is None else self.mask[:, :seen]
        if self.plan.cfg_scale:
            masked = ids.clone()
            masked[:, : self.first] = self.model.config.mask_token_id
            ids = torch.cat([ids, masked])
            mask = mask if mask is None else mask.repeat(2, 1)
            positions = positions if mask is None else positions.repeat(2, 1)
        window = slice(0, ids.shape[1])
        if self.plan.cache is not None and fresh:
            self.cache = BlockCache()
        elif self.plan.cache is not None:
            window = block if self.plan.cache == "dual" else slice(block.start, ids.shape[1])
            assert self.cache is not None
            self.cache.window = window
        kept = torch.arange(block.start - window.start, block.stop - window.start, device=ids.device)
        logits = self.model(
            input_ids=ids[:, window],
            attention_mask=mask,
            position_ids=positions[:, window],
            cache=self.cache,
            logits_to_keep=kept,
            **({"block_start": positions[:, self.first : self.first + 1]} if in_blocks else {}),
        ).logits.float()
        if self.plan.cfg_scale:
            given, not_given = logits.chunk(2)
            logits = not_given + (self.plan.cfg_scale + 1) * (given - not_given)
        return logits


def _fill(passes: _Passes, block: slice, generator: torch.Generator | None) -> None:
    """Fills in a block of the canvas."""
    ids, plan, counts = passes.ids, passes.plan, passes.plan.counts
    open_ = torch.ones_like(ids[:, block], dtype=torch.bool)  # [B, N]: still to be filled in
    step = 0
    while open_.any():
        fresh = step == 0 or (plan.refresh > 0 and step % plan.refresh == 0)
        tokens, confidence = _draw(passes.logits(block, fresh), plan, generator)
        confidence = confidence.masked_fill(~open_, -torch.inf)
        chosen = torch.zeros_like(open_)
        count = 1 if plan.threshold is not None else counts[step]
        chosen.scatter_(1, confidence.topk(min(count, confidence.shape[1]), dim=1).indices, True)
        if plan.threshold is not None:
            chosen |= confidence > plan.threshold
        chosen &= open_
        ids[:, block] = torch.where(chosen, tokens, ids[:, block])
        open_ &= ~chosen
        step += 1


def _draw(logits: torch.Tensor, plan: Plan, generator: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each position, and how much it deserves to stay, both [B, N]."""
    logits[..., plan.forbidden] = -torch.inf
    noisy = logits
    if plan.temperature > 0:
        # Gumbel-max: the largest of logits + T * noise is a draw from softmax(logits / T). In float32 the noise of a
        # large vocabulary is cut off where it matters.
        uniform = torch.rand(logits.shape, dtype=torch.float64, device=logits.device, generator=generator)
        noisy = logits.double() - plan.temperature * torch.log(-torch.log(uniform))
    tokens = noisy.argmax(-1)
    if plan.remasking == "random":
        return tokens, torch.rand(tokens.shape, device=logits.device, generator=generator)
    confidence = logits.softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return tokens, confidence


def _canvas(
    prompts: torch.Tensor, mask: torch.Tensor | None, length: int, mask_id: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompts followed by masks, [B, P + N], and what of it is no padding; None if all."""
    if mask is not None and mask.shape != prompts.shape:
        raise ValueError(
            f"attention_mask has shape {list(mask.shape)}, the prompts {list(prompts.shape)}; make it equal"
        )
    ids = torch.nn.functional.pad(prompts, (0, length), value=mask_id)
    if mask is None or mask.all():
        return ids, None
    if (mask.long().diff(dim=1) < 0).any():
        raise ValueError("prompts are padded on the right; pad them on the left (tokenizer.padding_side = 'left')")
    return ids, torch.nn.functional.pad(mask.long(), (0, length), value=1)


def _pad_after_end(ids: torch.Tensor, block: slice, done: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Pads a block after each row's first end of text, in place; returns which rows have ended, [B]."""
    if not plan.end_ids:
        return done
    is_end = torch.isin(ids[:, block], torch.tensor(plan.end_ids, device=ids.device))
    ended = is_end.cumsum(1) - is_end.long() > 0  # before this position
    ended |= done.unsqueeze(1)
    ids[:, block] = ids[:, block].masked_fill(ended, plan.pad_id)
    return done | is_end.any(1)


def _mask_id(config: Any) -> int:
    if config.mask_token_id is None or not 0 <= config.mask_token_id < config.vocab_size:
        raise ValueError(
            f"config.mask_token_id = {config.mask_token_id} is no row of the vocabulary ({config.vocab_size}); set it"
        )
    return config.mask_token_id
