"""Blocks of masks, filled in by a model that sees both ways."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from flame.errors import ConfigError
from flame.inference.batches import left_padded
from flame.inference.decoders.base import Completion, Decoder, refusals
from flame.inference.options import Options, check_temperature, option
from flame.inference.prompts import Prompt


@dataclass
class MaskedDiffusionOptions(Options):
    """How masks become tokens."""

    max_new_tokens: int = option(128, "masks that follow the prompt", low=1)
    temperature: float = option(0.0, "0 always takes the likeliest token", low=0)
    steps: int | None = option(None, "passes through the model over all blocks; else one for each token", low=1)
    block_length: int | None = option(
        None, "tokens filled in before those to their right are begun; else the model's own, or 32", low=1
    )
    cfg_scale: float = option(0.0, "classifier-free guidance by the masked prompt; 0: none", low=0)
    remasking: str = option("low_confidence", "which draws stay", choices=("low_confidence", "random"))
    threshold: float | None = option(None, "keep all draws likelier than this instead of a fixed number", low=0, high=1)
    cache: str | None = option(None, "keep keys and values within a block", choices=("prefix", "dual"))
    refresh: int = option(0, "renew the cache after so many steps; 0: once a block", low=0)
    suppress_eos: bool = option(False, "never draw the end of text")

    def check(self, given: Iterable[str] = ()) -> None:
        """See ``Options.check``."""
        super().check(given)
        check_temperature(self.temperature)
        if self.threshold is not None and self.steps is not None:
            raise ConfigError("--steps and --threshold both say how many tokens stay; give one of them")
        if self.threshold is not None and "remasking" in given:
            raise ConfigError("--remasking has no effect with --threshold, which keeps the likeliest; give one of them")
        if self.refresh and self.cache is None:
            raise ConfigError("--refresh has no effect without --cache; give one, such as prefix")

    @property
    def deterministic(self) -> bool:
        """See ``Options.deterministic``."""
        return not self.temperature and self.remasking != "random"


class MaskedDiffusionDecoder(Decoder):
    """Runs the model's own ``generate`` (LLaDA, arXiv 2502.09992; Fast-dLLM, arXiv 2505.22618)."""

    Options = MaskedDiffusionOptions

    def pads(self) -> bool:
        """True: such models give padding to their attention, and its places no positions."""
        return True

    def run(self, prompts: Sequence[Prompt], show: Callable[[str], None] | None = None) -> list[Completion]:
        """See ``Decoder.run``; the text appears block by block."""
        engine = self.engine
        ids, mask = left_padded([prompt.ids for prompt in prompts], engine.pad, engine.model.device)
        with refusals():
            written = engine.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask,
                streamer=self.streamer(prompts[0], show) if show else None,
                eos_token_id=list(engine.ends),
                pad_token_id=engine.pad,
                **asdict(self.options),
            )
        new = written[:, ids.shape[1] :].tolist()
        return [self.completion(prompt, tokens) for prompt, tokens in zip(prompts, new, strict=True)]


DECODER = MaskedDiffusionDecoder
