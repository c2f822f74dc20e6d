"""Huginn: a language model that runs its core as often as is asked for (https://arxiv.org/abs/2502.05171).

e = prelude(scale * embed(x));  s_0 random;  s_i = core(inject(s_{i-1}, e));  logits = head(norm(coda(norm(s_r)))).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .configuration_huginn_raven import RavenConfig
from .modeling_raven_blocks import CausalSelfAttention, RMSNorm, SandwichBlock, injected, make_adapter, rotation
from .modeling_raven_cache import CACHE, RavenCache
from .modeling_raven_exits import ExitRule
from .modeling_raven_generation import RavenGenerationMixin
from .modeling_raven_states import disturbed, initial_state, position_seeds, random_seeds, state_figures

Steps = int | Sequence[int] | torch.Tensor | None
DETAILS = {"return_logits": True, "return_latents": True, "return_head": False, "return_stats": False}


@dataclass
class RavenOutput(CausalLMOutputWithPast):
    """What a forward pass gives: loss, float32 logits [B, T, V] of the positions that were kept, the cache, and:"""

    hidden_states: torch.Tensor | None = None  # type: ignore[assignment]
    """What the head receives [B, T, H], with ``return_head``."""
    latent_states: torch.Tensor | None = None
    """The last state s_r [B, T, H], detached; ``input_states`` of a pass that goes on from it."""
    stats: dict[str, Any] | None = None
    """``steps`` of every token [B, T] where tokens can exit, and the figures of ``state_figures`` with
    ``return_stats``."""


@dataclass
class Around:
    """What every block of a pass receives beside the hidden states."""

    turns: torch.Tensor
    mask: Any
    seeds: torch.Tensor
    cache: RavenCache | None
    options: dict[str, Any]
    """Keyword arguments of the attention function."""


class RavenPreTrainedModel(PreTrainedModel):
    """What transformers wants to know of the family."""

    config_class = RavenConfig
    config: RavenConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SandwichBlock"]  # noqa: RUF012
    _shared_blocks = ("transformer.core_block",)
    """Lists of blocks that one forward pass runs several times."""
    _fused_projections = {"fc": "halves"}  # noqa: RUF012
    """Projections that are several in one, for optimizers that treat matrices as wholes."""
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.init_std
        if isinstance(module, nn.Linear):
            depth = self.config.effective_expected_depth
            self._fill(module, std / (2 * depth) ** 0.5 if getattr(module, "ends_branch", False) else std)
        elif isinstance(module, nn.Embedding):
            init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)
        elif isinstance(module, RMSNorm) and module.weight is not None:
            init.ones_(module.weight)
        elif isinstance(module, CausalSelfAttention) and self.config.qk_bias:
            init.zeros_(module.qk_bias)
        elif isinstance(module, RavenForCausalLM):
            init.copy_(module.freqs_cis, rotation_table(self.config))

    def _fill(self, module: nn.Linear, std: float) -> None:
        if not self.config.init_orthogonal:
            init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)
        elif not getattr(module.weight, "_is_hf_initialized", False):
            # Projections that are fused for speed begin orthogonal each for itself.
            for part in module.weight.split(getattr(module, "sections", None) or len(module.weight)):
                init.orthogonal_(part, gain=std * max(part.shape) ** 0.5)


class RavenForCausalLM(RavenGenerationMixin, RavenPreTrainedModel):
    """The model with its head; parameter names are those of tomg-group-umd/huginn-0125.

    Arguments of ``forward``, which raises ValueError where they do not go together:

    input_ids: [B, T].
    inputs_embeds: [B, T, H] instead, before they are scaled.
    input_states: s_0 [B, T, H] instead of a random one.
    num_steps: steps r of the core, of which the last ``mean_backprop_depth`` keep a graph; or how many run
        without a graph and how many with one. None: ``mean_recurrence``.
    past_key_values: earlier tokens; transformers calls it ``cache`` since 5.24.
    attention_mask: [B, T of all tokens], 0 for padding on either side; or 4D, as the attention function has it.
    position_ids: [B, T]; where they restart, another document begins.
    labels: [B, T], not shifted; -100 where not scored.
    use_cache: whether to give a cache back; None: if there is one.
    output_details: ``return_logits``, ``return_latents``, ``return_head``, ``return_stats``.
    logits_to_keep: the last so many positions, or these; 0: all.
    state_seeds: int64 [B, T]; s_0 is a hash of them.
    state_seed: without them, outside training, s_0 is a hash of this and the position. In training it is
        drawn from torch's default generator.
    init_scale: times s_0.
    exit_criterion: lets each token stop when it has settled; see ``ExitRule``, also for the next three.
    exit_threshold: None: the criterion's own.
    min_steps: before which no token stops.
    check_every: steps between two looks.
    exit_in_prefill: whether tokens stop early in passes of several tokens too.
    continuous_thought: a single new token begins with the last state of the one before it.
    cache_lookup: of a cache that is made here; see ``RavenCache``.
    kwargs: for the attention function.
    """

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    freqs_cis: torch.Tensor
    recompute_iterations: bool = False
    """Whether training keeps of each step of the core only what it begins with, and runs it again for the backward
    pass; prelude and coda are not touched."""

    def __init__(self, config: RavenConfig) -> None:
        super().__init__(config)
        counts = {
            "prelude": config.n_layers_in_prelude,
            "core_block": config.n_layers_in_recurrent_block,
            "coda": config.n_layers_in_coda,
        }
        blocks = {name: nn.ModuleList(SandwichBlock(config) for _ in range(n)) for name, n in counts.items()}
        parts = {
            "wte": nn.Embedding(config.vocab_size, config.n_embd),
            "prelude": blocks["prelude"],
            "adapter": make_adapter(config),
            "core_block": blocks["core_block"],
            "coda": blocks["coda"],
            "ln_f": RMSNorm(config),
        }
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # The official checkpoint holds it. Angles are computed from positions, so that no length is too long for them
        # and no half precision rounds them.
        self.register_buffer("freqs_cis", rotation_table(config), persistent=True)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer["wte"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer["wte"] = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        input_states: torch.Tensor | None = None,
        num_steps: Steps = None,
        past_key_values: RavenCache | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_details: dict[str, bool] | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        state_seeds: torch.Tensor | None = None,
        state_seed: int = 0,
        init_scale: float = 1.0,
        exit_criterion: str = "none",
        exit_threshold: float | None = None,
        min_steps: int = 1,
        check_every: int = 1,
        exit_in_prefill: bool = True,
        continuous_thought: bool = False,
        cache_lookup: str = "latest",
        cache: RavenCache | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> RavenOutput:
        """Runs the model; the class tells what the arguments are."""
        details = DETAILS | (output_details or {})
        rule = ExitRule(exit_criterion, exit_threshold, min_steps, check_every)
        cache = past_key_values if cache is None else cache
        if cache is None and (use_cache or rule.exits):
            cache = RavenCache(self.config, cache_lookup)
        thought = self._thought(continuous_thought, cache)
        embedded = self.embed_inputs(input_ids, inputs_embeds)
        around = self._around(embedded, cache, attention_mask, position_ids, state_seeds, state_seed, kwargs)
        embedded = self._through("prelude", embedded, around)
        state = input_states if thought is None or embedded.shape[1] > 1 else thought
        state = initial_state(self.config, embedded, around.seeds, init_scale) if state is None else state
        stats: dict[str, Any] = {}
        no_grad, grad = self.depth(num_steps)
        if rule.exits and (exit_in_prefill or embedded.shape[1] == 1):
            previous, state, stats["steps"] = self._until_settled(state, embedded, around, no_grad + grad, rule)
        else:
            previous, state = self.iterate(state, embedded, around, no_grad, grad)
        if cache is not None:
            cache.latent = state[:, -1:].detach()
        if details["return_stats"]:
            stats |= state_figures(state, previous)
        hidden = self.predict_hidden(state, around)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept]).float() if details["return_logits"] or labels is not None else None
        return RavenOutput(
            loss=None if labels is None else self._loss(logits, labels, num_items_in_batch),
            logits=logits if details["return_logits"] else None,
            latent_states=state.detach() if details["return_latents"] else None,
            hidden_states=hidden if details["return_head"] else None,
            stats=stats or None,
            **{CACHE: cast(Any, None if use_cache is False else cache)},
        )

    def _loss(
        self, logits: torch.Tensor | None, labels: torch.Tensor, items: int | torch.Tensor | None
    ) -> torch.Tensor:
        """transformers' loss of the next token: the mean, or the sum over ``items``."""
        return self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=items)

    def depth(self, num_steps: Steps) -> tuple[int, int]:
        """How many steps run without a graph and how many with one."""
        given = num_steps.tolist() if isinstance(num_steps, torch.Tensor) else num_steps
        steps = [self.config.mean_recurrence if given is None else given] if not isinstance(given, Sequence) else given
        if len(steps) not in (1, 2) or any(step != int(step) or step < 0 for step in steps) or sum(steps) < 1:
            raise ValueError(f"num_steps {num_steps} is neither a number of steps from 1 nor two of them")
        total = int(sum(steps))
        kept = int(steps[1]) if len(steps) == 2 else min(total, self.config.mean_backprop_depth)
        if self.config.injection_type == "none":
            kept = total  # gradients reach the prelude through all states or not at all
        return total - kept, kept

    def embed_inputs(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """What the prelude receives, [B, T, H]."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        embedded = self.transformer["wte"](input_ids) if inputs_embeds is None else inputs_embeds
        return embedded * self.config.embedding_scale

    def step(self, state: torch.Tensor, embedded: torch.Tensor, around: Around, index: int, active: Any = None) -> Any:
        """s_i [B, T, H] from s_{i-1}; ``index`` counts steps from 0, ``active`` [B, T] are the tokens that run it."""
        if self.config.test_time_noise:
            state = disturbed(self.config, state, around.seeds, index)
        hidden = injected(self.config.injection_type, self.transformer["adapter"], state, embedded)
        blocks = self._blocks("core_block")
        first = self.config.n_layers_in_prelude + index * len(blocks)
        for number, block in enumerate(blocks):
            slot = around.cache.slot(first + number, active) if around.cache is not None else None
            hidden = block(hidden, around.turns, around.mask, slot, around.options)
        return hidden

    def iterate(
        self, state: torch.Tensor, embedded: torch.Tensor, around: Around, no_grad: int, grad: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the core; gives the last state but one and the last, [B, T, H] each."""
        previous = state
        with torch.no_grad():
            for index in range(no_grad):
                previous, state = state, self.step(state, embedded, around, index)
        torch.clear_autocast_cache()  # weights cast without a graph must not serve the steps with one
        step = partial(self._recomputed, self.step)
        # A second run would write into a cache once more.
        if self.recompute_iterations and self.training and torch.is_grad_enabled() and around.cache is None:
            # Nothing in a step draws from a generator: its noise is a hash.
            step = partial(checkpoint, self.step, use_reentrant=False, preserve_rng_state=False)
        for index in range(no_grad, no_grad + grad):
            previous, state = state, step(state, embedded, around, index)
        return previous, state

    @torch.no_grad()
    def _until_settled(
        self, state: torch.Tensor, embedded: torch.Tensor, around: Around, most: int, rule: ExitRule
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Runs the core until every token has settled; gives what ``iterate`` does and the steps [B, T] of each."""
        if self.training:
            raise ValueError(f"exit_criterion '{rule.criterion}' leaves no gradient; call eval() or leave it out")
        active = torch.ones(state.shape[:2], dtype=torch.bool, device=state.device)
        steps, previous = torch.zeros_like(active, dtype=torch.long), state
        for index in range(most):
            following = self.step(state, embedded, around, index, None if bool(active.all()) else active)
            steps += active
            previous = torch.where(active.unsqueeze(-1), state, previous)
            state = torch.where(active.unsqueeze(-1), following, state)
            if rule.looks(index + 1) and index + 1 < most:
                seen = self.lm_head(self.predict_hidden(state, around)) if rule.reads_logits else state
                active = active & ~rule.settled(index + 1, seen)
                if not bool(active.any()):
                    break
        return previous, state, steps

    def predict_hidden(self, state: torch.Tensor, around: Around) -> torch.Tensor:
        """What the head receives [B, T, H] where the recurrence ends with ``state``."""
        norm = self.transformer["ln_f"]
        return norm(self._through("coda", norm(state), around))

    def _through(self, part: str, hidden: torch.Tensor, around: Around) -> torch.Tensor:
        for index, block in enumerate(self._blocks(part)):
            number = index if part == "prelude" else -1 - index
            slot = around.cache.slot(number) if around.cache is not None else None
            hidden = self._recomputed(block, hidden, around.turns, around.mask, slot, around.options)
        return hidden

    def _blocks(self, part: str) -> nn.ModuleList:
        blocks = self.transformer[part]
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def _recomputed(self, run: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
        """Runs a block of prelude or coda, or a step of the core, keeping only its input for the backward pass if
        transformers' gradient checkpointing is on."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(run, *arguments)
        return run(*arguments)

    def _around(
        self,
        embedded: torch.Tensor,
        cache: RavenCache | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        state_seeds: torch.Tensor | None,
        state_seed: int,
        options: dict[str, Any],
    ) -> Around:
        self._check_cache(cache)
        # By position: the cache has another name in each of two releases.
        mask = create_causal_mask(self.config, embedded, attention_mask, cache, position_ids)
        rows, length = embedded.shape[:2]
        if position_ids is None:
            before = cache.seen if cache is not None else 0
            position_ids = positions(attention_mask, rows, length, before, embedded.device)
        position_ids = position_ids.expand(rows, length)
        if state_seeds is None:
            own = self.training and cache is None
            state_seeds = random_seeds(position_ids) if own else position_seeds(state_seed, position_ids)
        if cache is not None:
            cache.begin(length)
        # Flash attention has no mask that tells documents apart; it looks at the positions.
        options = {**options, "position_ids": position_ids}
        return Around(rotation(self.config, position_ids), mask, state_seeds, cache, options)

    def _check_cache(self, cache: RavenCache | None) -> None:
        if cache is not None and not isinstance(cache, RavenCache):
            raise ValueError(f"the cache is a {type(cache).__name__}; this model needs its own RavenCache")
        attention = self.config._attn_implementation
        if cache is not None and cache.policy == "skip" and attention not in ("sdpa", "eager"):
            raise ValueError(f"cache_lookup 'skip' masks tokens, which attention '{attention}' cannot; use 'sdpa'")

    def _thought(self, continuous: bool, cache: RavenCache | None) -> torch.Tensor | None:
        if continuous and cache is None:
            raise ValueError("continuous_thought goes on from the last token's state, which only a cache holds")
        return cache.latent if continuous and cache is not None else None


def positions(
    attention_mask: torch.Tensor | None, rows: int, length: int, before: int, device: torch.device
) -> torch.Tensor:
    """The positions [B, T] of the newest ``length`` tokens after ``before`` others; padding on the left counts not."""
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -length:]
    return torch.arange(before, before + length, device=device).expand(rows, length)


def rotation_table(config: RavenConfig) -> torch.Tensor:
    """Cosines and sines of every position of the context, [1, T, 1, D / 2, 2] in float32."""
    return torch.view_as_real(rotation(config, torch.arange(config.block_size).unsqueeze(0)))
