"""What the recurrence begins with and is disturbed by: random numbers that belong to a position, not to a generator.

Every position of every row has a seed, and a number is a hash of (seed, channel). So it does not depend on which rank
holds the row, on how a sequence is cut, on the batch around it, or on whether a cache is used.
"""

import math

import torch

from .configuration_huginn_raven import RavenConfig

_CUT = 3.0  # standard deviations
_GOLDEN = -7046029254386353131  # 2**64 / golden ratio, odd, as a signed number
_MIX = (-4658895280553007687, -7723592293110705685)
_STREAMS = {"state": 0, "noise": 1, "amount": 2}


def position_seeds(state_seed: int, position_ids: torch.Tensor) -> torch.Tensor:
    """Seeds [B, T] from one seed and the positions [B, T]."""
    return mixed(position_ids.long() + mixed(torch.full_like(position_ids, state_seed, dtype=torch.long)))


def random_seeds(like: torch.Tensor) -> torch.Tensor:
    """Seeds of the shape of ``like`` [B, T] from torch's default generator on its device."""
    return torch.randint(-(2**62), 2**62, like.shape, dtype=torch.long, device=like.device)


def mixed(numbers: torch.Tensor) -> torch.Tensor:
    """Hashes int64 numbers: the finaliser of SplitMix64 (Steele, Lea and Flood 2014), in wrapping arithmetic."""
    for shift, factor in zip((30, 27), _MIX, strict=True):
        numbers = (numbers ^ _shifted(numbers, shift)) * factor
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: torch.Tensor, by: int) -> torch.Tensor:
    """A logical shift to the right, which torch has not."""
    return (numbers >> by) & ((1 << (64 - by)) - 1)


def uniform(seeds: torch.Tensor, channels: int, stream: str, step: int = 0) -> torch.Tensor:
    """Numbers in (0, 1), float32 [B, T, channels].

    Args:
        seeds: [B, T], int64.
        channels: even.
        stream: what they are for; other numbers for each.
        step: of the recurrence.
    """
    offset = _GOLDEN * (1 + _STREAMS[stream] + len(_STREAMS) * step)
    base = mixed(seeds + ((offset + 2**63) % 2**64 - 2**63))
    counters = torch.arange(1, channels // 2 + 1, device=seeds.device) * _GOLDEN
    bits = mixed(base.unsqueeze(-1) + counters)  # [B, T, channels / 2], 64 bits each: two numbers
    halves = torch.stack([(bits >> 8) & 0xFFFFFF, (bits >> 40) & 0xFFFFFF], dim=-1).flatten(-2)
    return (halves.float() + 0.5) * 2**-24


def normal(seeds: torch.Tensor, channels: int, stream: str, step: int = 0) -> torch.Tensor:
    """Numbers from the standard normal distribution, float32 [B, T, channels]."""
    return torch.erfinv(2 * uniform(seeds, channels, stream, step) - 1) * math.sqrt(2)


def truncated_normal(seeds: torch.Tensor, channels: int, stream: str, step: int = 0) -> torch.Tensor:
    """Numbers from a normal distribution cut at three standard deviations, float32 [B, T, channels]."""
    mass = math.erf(_CUT / math.sqrt(2))
    return torch.erfinv((2 * uniform(seeds, channels, stream, step) - 1) * mass) * math.sqrt(2)


def initial_state(config: RavenConfig, embedded: torch.Tensor, seeds: torch.Tensor, scale: float) -> torch.Tensor:
    """The state s_0 before the first step, [B, T, H] like the embedded input.

    Args:
        config: says which kind.
        embedded: what the prelude gives, [B, T, H].
        seeds: [B, T].
        scale: times the usual state.
    """
    if config.injection_type == "none":
        return embedded * scale
    if config.state_init == "zero":
        return torch.zeros_like(embedded)
    width = embedded.shape[-1]
    state = (truncated_normal if config.state_init == "like-init" else normal)(seeds, width, "state")
    if config.state_init == "unit":
        state = (state - state.mean(-1, keepdim=True)) / state.std(-1, keepdim=True)
    std = {"like-init": config.init_std * config.embedding_scale, "embed": width**-0.5}.get(config.state_init, 1.0)
    return (state * (std * scale)).to(embedded.dtype)


def disturbed(config: RavenConfig, state: torch.Tensor, seeds: torch.Tensor, step: int) -> torch.Tensor:
    """The state [B, T, H] before step ``step`` (from 0) mixed with noise: (1 - a) s + a z.

    The amount a is ``test_time_noise`` in units of the first state, over 1, i, sqrt(i) ... as the type says.
    """
    amount: float | torch.Tensor = config.test_time_noise * config.init_std * config.embedding_scale
    match config.test_time_noise_type:
        case "geom":
            amount /= step + 1
        case "sqrt":
            amount /= math.sqrt(step + 1)
        case "line":
            amount = max(amount, (config.mean_recurrence - step) / config.mean_recurrence)
        case "chi":
            amount = 2 * amount * uniform(seeds, 2, "amount", step)[..., :1]
    noise = normal(seeds, state.shape[-1], "noise", step)
    return ((1 - amount) * state + amount * noise).to(state.dtype)


@torch.no_grad()
def state_figures(state: torch.Tensor, previous: torch.Tensor) -> dict[str, torch.Tensor]:
    """What tells whether the recurrence works, each a scalar.

    Args:
        state: the last state, [B, T, H].
        previous: the one before it.

    Returns:
        ``token_correlation``: the mean correlation of the states of two positions of a row, which nears 1 where states
        collapse; ``state_norm``: the mean root mean square; ``step_residual``: how much the last step changed, relative
        to the state.
    """
    state, previous = state.float(), previous.float()
    centred = state - state.mean(-1, keepdim=True)
    unit = centred / centred.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    length = state.shape[1]
    pairs = max(length * (length - 1), 1)
    together = (unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))) / pairs  # [B], without a token and itself
    norm = state.norm(dim=-1)
    return {
        "token_correlation": together.mean(),
        "state_norm": (norm / math.sqrt(state.shape[-1])).mean(),
        "step_residual": ((state - previous).norm(dim=-1) / norm.clamp_min(1e-12)).mean(),
    }
