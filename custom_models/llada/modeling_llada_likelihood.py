"""How likely an answer is: Monte-Carlo estimates of the bound on its log-likelihood (LLaDA, arXiv 2502.09992)."""

from typing import Any

import torch

_ESTIMATORS = ("count", "ratio")


class LikelihoodMixin:
    """``log_likelihood`` of a masked diffusion model."""

    @torch.no_grad()
    def log_likelihood(
        self: Any,
        prompt: torch.Tensor,
        answer: torch.Tensor,
        *,
        estimator: str = "count",
        samples: int = 128,
        batch_size: int = 16,
        cfg_scale: float = 0.0,
        eps: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> float:
        """A lower bound on log p(answer | prompt) in nats, estimated.

        With CE_i the cross entropy of the answer's i-th token where the answer's tokens M are masked, it is minus the
        mean over draws of

        ``count``: L / l * sum of CE_i over M, M being l of the L tokens, l uniform over 1..L;
        ``ratio``: 1 / p * sum of CE_i over M, M having each token with probability p = (1 - eps) t + eps, t uniform
        over [0, 1]: what training minimises. Its draws vary more.

        Both draw l or t at equal distances from a random start, and both have the same expectation but for eps.
        Where ``config.block_length`` is set, L, l and p are those of a block, and the bounds of blocks, each given the
        ones before it, add up.

        Args:
            prompt: [P], never masked; P may be 0.
            answer: [L].
            estimator: ``count`` or ``ratio``.
            samples: draws; one is enough for an answer of one token.
            batch_size: draws a pass.
            cfg_scale: w of classifier-free guidance, as in ``generate``.
            eps: least probability of a mask in ``ratio``.
            generator: of the draws, on the answer's device.

        Raises:
            ValueError: an empty answer, no samples, an unknown estimator or a negative scale.
        """
        _check(prompt, answer, estimator, samples, batch_size, cfg_scale, eps)
        if self.config.mask_token_id is None:
            raise ValueError(
                "config.mask_token_id = None: a model that has no mask cannot be asked what stands behind it"
            )
        device, length = answer.device, len(answer)
        parts = [
            _masks(size, samples, estimator, eps, device, generator)
            for size in _sizes(length, self.config.block_length or length)
        ]
        masked = torch.cat([part for part, _ in parts], dim=1)  # [S, L]
        weights = torch.cat([weight.expand_as(part) for part, weight in parts], dim=1)  # [S, L]
        losses = [masked_loss(self, prompt, answer, part, cfg_scale) for part in masked.split(batch_size)]
        return -(torch.cat(losses).double() * weights).sum(1).mean().item()


def _sizes(length: int, block: int) -> list[int]:
    """Lengths of the blocks of an answer; the last may be shorter."""
    return [min(block, length - start) for start in range(0, length, block)]


def _masks(
    length: int,
    samples: int,
    estimator: str,
    eps: float,
    device: torch.device,
    generator: torch.Generator | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws which tokens of a block are masked, [S, L], and what their losses count, [S, 1]."""
    start = torch.rand(1, device=device, generator=generator)
    spread = ((start + torch.arange(samples, device=device) / samples) % 1).unsqueeze(1)  # [S, 1]
    spread = spread[torch.randperm(samples, device=device, generator=generator)]  # blocks are drawn independently
    noise = torch.rand(samples, length, device=device, generator=generator)
    if estimator == "count":
        counts = (spread * length).long().clamp(max=length - 1) + 1
        return noise.argsort(dim=1).argsort(dim=1) < counts, length / counts
    chances = (1 - eps) * spread + eps
    return noise < chances, 1 / chances


def masked_loss(
    model: Any, prompt: torch.Tensor, answer: torch.Tensor, masked: torch.Tensor, cfg_scale: float = 0.0
) -> torch.Tensor:
    """Cross entropy of masked tokens, [S, L] in float32 and 0 elsewhere, for S ways to mask an answer.

    Args:
        model: a masked diffusion model.
        prompt: [P].
        answer: [L].
        masked: [S, L].
        cfg_scale: w of classifier-free guidance.
    """
    mask_id = model.config.mask_token_id
    answers = answer.expand_as(masked).masked_fill(masked, mask_id)
    prompts = prompt.expand(len(masked), -1)
    ids = torch.cat([prompts, answers], dim=1)  # [S, P + L]
    if cfg_scale:
        ids = torch.cat([ids, torch.cat([torch.full_like(prompts, mask_id), answers], dim=1)])
    kept = torch.arange(len(prompt), ids.shape[1], device=ids.device)
    blocks: dict[str, Any] = {}
    if model.config.block_length:
        blocks = {"clean_ids": torch.cat([ids[:, : len(prompt)], answer.expand(len(ids), -1)], dim=1)}
        blocks["block_start"] = len(prompt)
    logits = model(input_ids=ids, logits_to_keep=kept, **blocks).logits.float()  # [S, L, V]
    if cfg_scale:
        given, not_given = logits.chunk(2)
        logits = not_given + (cfg_scale + 1) * (given - not_given)
    targets = answer.expand_as(masked)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view_as(masked) * masked


def _check(
    prompt: torch.Tensor,
    answer: torch.Tensor,
    estimator: str,
    samples: int,
    batch_size: int,
    cfg_scale: float,
    eps: float,
) -> None:
    if prompt.ndim != 1 or answer.ndim != 1 or not len(answer):
        raise ValueError(f"prompt {list(prompt.shape)} and answer {list(answer.shape)} must be [P] and [L] with L >= 1")
    if estimator not in _ESTIMATORS:
        raise ValueError(f"estimator = {estimator!r}; choose one of {', '.join(_ESTIMATORS)}")
    if samples < 1 or batch_size < 1 or cfg_scale < 0 or not 0 < eps < 1:
        raise ValueError(
            f"samples = {samples}, batch_size = {batch_size}, cfg_scale = {cfg_scale}, eps = {eps}: "
            "give at least 1, 1, 0 and a share"
        )
