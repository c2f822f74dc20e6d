"""Token by token, each by as many steps of the core as are asked for or as it takes to settle."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from flame.errors import ConfigError
from flame.inference.decoders.autoregressive import ONE_ROW_EACH, AutoregressiveDecoder, AutoregressiveOptions
from flame.inference.decoders.base import Completion, refusals
from flame.inference.options import option
from flame.inference.prompts import Encoder, Prompt

_OF_EXITS = ("exit_threshold", "min_steps", "check_every")
_WITHOUT_DRAFT = ("min_new_tokens", "exit_criterion", "continuous_thought", *_OF_EXITS)


@dataclass
class RecurrentDepthOptions(AutoregressiveOptions):
    """How deep a token goes."""

    num_steps: int | None = option(None, "steps of the core for each token; else the model's mean", low=1)
    exit_criterion: str = option("none", "lets tokens stop early: kl, entropy-diff, latent-diff, argmax-stability ...")
    exit_threshold: float | None = option(None, "change below which a token stops; else the criterion's own", low=1e-12)
    min_steps: int = option(1, "steps before which no token stops", low=1)
    check_every: int = option(1, "steps between two looks whether to stop", low=1)
    continuous_thought: bool = option(False, "a token begins with the last state of the one before it")
    cache_lookup: str = option("latest", "what is seen of tokens that ran fewer steps, and which steps share memory")
    state_seed: int = option(0, "of the random first states", low=0, high=2**63 - 1)
    draft_steps: int = option(0, "steps that draft tokens which all steps check; 0: no drafts", low=0)
    draft_tokens: int = option(8, "tokens drafted at a time", low=1)

    def check(self, given: Iterable[str] = ()) -> None:
        """See ``Options.check``."""
        super().check(given)
        idle = [name for name in _OF_EXITS if name in given]
        if self.exit_criterion == "none" and idle:
            raise ConfigError(f"--{idle[0]} has no effect without --exit_criterion; give one, such as kl")
        if self.num_steps is not None:
            self.check_exits(self.num_steps)
        if self.draft_steps:
            self._check_drafts(given)
        elif "draft_tokens" in given:
            raise ConfigError("--draft_tokens has no effect without --draft_steps; give the steps of a draft")

    def _check_drafts(self, given: Iterable[str]) -> None:
        if self.temperature:
            raise ConfigError("--draft_steps decodes greedily; add --temperature 0")
        if others := [name for name in _WITHOUT_DRAFT if name in given]:
            raise ConfigError(f"--{others[0]} cannot be had together with --draft_steps; leave one of them out")
        if self.repetition_penalty not in (None, 1):
            raise ConfigError(
                f"--repetition_penalty {self.repetition_penalty:g} is not known to drafts; leave --draft_steps out"
            )
        lookup = self.cache_lookup
        if "compress-" in lookup or lookup.startswith(("always-last", "randomized")):
            # What a token sees then depends on the tokens that share its pass, or on chance.
            raise ConfigError(
                f"--cache_lookup {lookup} with --draft_steps would not give the greedy text of all steps; "
                "leave one of them out"
            )

    def check_exits(self, steps: int) -> None:
        """Raises ConfigError where no token could stop before the last of ``steps``."""
        if self.exit_criterion == "none":
            return
        # The first look has nothing to compare with.
        first = self.check_every * max(2, math.ceil(self.min_steps / self.check_every))
        if first >= steps:
            raise ConfigError(
                f"--exit_criterion {self.exit_criterion} has no effect: with --min_steps {self.min_steps} and "
                f"--check_every {self.check_every} no token can stop before step {first}, of --num_steps {steps}; "
                "change one of them"
            )

    @property
    def deterministic(self) -> bool:
        """See ``Options.deterministic``."""
        return super().deterministic and not self.cache_lookup.startswith("randomized")

    def depth(self) -> dict[str, Any]:
        """Arguments of the model's forward pass."""
        others = {item.name for item in fields(AutoregressiveOptions)} | {"draft_steps", "draft_tokens"}
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in others}


class RecurrentDepthDecoder(AutoregressiveDecoder):
    """Runs ``model.generate`` with the arguments of recurrent-depth models (arXiv 2502.05171, section 5)."""

    Options = RecurrentDepthOptions
    figures = ("mean_steps",)

    def __init__(self, engine: Any, options: RecurrentDepthOptions, stops: Sequence[str] = ()) -> None:
        super().__init__(engine, options, stops)
        if options.num_steps is None:
            options.check_exits(engine.model.config.mean_recurrence)
        if options.draft_steps:
            self.encoder = Encoder(engine, gives_spaces_back=False)
        self._steps: list[torch.Tensor] = []  # [B, 1] of every new token

    def run(self, prompts: Sequence[Prompt], show: Callable[[str], None] | None = None) -> list[Completion]:
        """See ``Decoder.run``; where tokens may stop early, tells how many steps they ran in the mean."""
        self._steps = []
        hook = self.engine.model.register_forward_hook(self._count)
        try:
            with refusals():
                made = super().run(prompts, show)
        finally:
            hook.remove()
        for row, completion in enumerate(made):
            # The first pass is over the prompt and makes the first token; the last token is not read any more.
            ran = [float(steps[row, -1]) for steps in self._steps[: completion.tokens]]
            if ran:
                completion.figures["mean_steps"] = round(sum(ran) / len(ran), 3)
        return made

    def written(self, prompts: Sequence[Prompt], show: Callable[[str], None] | None, **arguments: Any) -> torch.Tensor:
        """See ``AutoregressiveDecoder.written``."""
        options = self.options
        if not options.draft_steps:
            return super().written(prompts, show, **options.depth(), **arguments)
        depth = {name: getattr(options, name) for name in ("num_steps", "state_seed", "cache_lookup")}
        written = self.engine.model.generate(  # type: ignore[operator]
            draft_steps=options.draft_steps,
            draft_tokens=options.draft_tokens,
            **depth,
            **ONE_ROW_EACH,
            **options.sampling(),
            **arguments,
        )
        if show:
            show(self.completion(prompts[0], written[0, arguments["input_ids"].shape[1] :].tolist()).text)
        return written

    def _count(self, module: Any, inputs: Any, output: Any) -> None:
        stats = getattr(output, "stats", None)
        if stats and "steps" in stats:
            self._steps.append(stats["steps"])


DECODER = RecurrentDepthDecoder
