"""A small model with everything a checkpoint manager saves, and ways to damage what it saved."""

import flame.compat  # noqa: F401  torchtitan binds its device when it is imported

# isort: split
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchtitan.components.lr_scheduler import LRSchedulersContainer
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.config import Checkpoint

from flame.checkpoint.manager import CheckpointManager


class TinyModel(nn.Module):
    """An embedding, a body and a head, which may be the embedding."""

    def __init__(self, tied: bool = False, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, width)
        self.body = nn.Linear(width, width)
        self.head = nn.Linear(width, 13, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, T, 13]``."""
        return self.head(torch.tanh(self.body(self.embedding(tokens))))


class Lanes:
    """A dataloader's state: a small tensor for each lane that this rank reads."""

    def __init__(self, lanes: range) -> None:
        self.lanes = {f"place_{lane:06d}": torch.full((2,), lane) for lane in lanes}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """This rank's lanes."""
        return self.lanes

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Takes this rank's lanes."""
        self.lanes = dict(state_dict)


class Counter:
    """What a trainer keeps of itself."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """The step."""
        return {"step": torch.tensor(self.step)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the step."""
        self.step = int(state_dict["step"])


class SameNames:
    """A state-dict adapter for a model whose names are those of its HuggingFace folder."""

    fqn_to_index_mapping = None
    hf_assets_path = None

    def to_hf(self, state: dict[str, Any]) -> dict[str, Any]:
        """The same."""
        return state

    from_hf = to_hf


class Run:
    """A model in training with its checkpoint manager.

    Args:
        folder: The run folder.
        model: The model; default: a ``TinyModel``.
        lanes: The lanes this rank reads.
        adapter: A state-dict adapter.
        options: Fields of ``checkpoint``.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module | None = None,
        lanes: range = range(4),
        adapter: Any = None,
        **options: Any,
    ) -> None:
        self.model: Any = TinyModel() if model is None else model
        self.optimizers = OptimizersContainer([self.model], torch.optim.AdamW, {"lr": 0.1})
        self.lanes = Lanes(lanes)
        self.counter = Counter()
        defaults = {"enable": True, "interval": 1, "keep_latest_k": 0, "last_save_model_only": False}
        self.manager = CheckpointManager(
            self.lanes,
            [self.model],
            self.optimizers,
            LRSchedulersContainer(self.optimizers, lambda step: 1.0),
            {"train_state": self.counter},
            Checkpoint(**(defaults | options)),
            adapter,
            base_folder=str(folder),
        )

    def train(self, steps: int) -> list[float]:
        """Trains and saves ``steps`` steps; returns their losses."""
        losses = []
        for _ in range(steps):
            self.counter.step += 1
            tokens = torch.arange(12).reshape(2, 6) + self.counter.step
            loss = nn.functional.cross_entropy(self.model(tokens % 13).flatten(0, 1), tokens.flatten() % 13)
            self.optimizers.zero_grad()
            loss.backward()
            self.optimizers.step()
            losses.append(loss.item())
            self.manager.maybe_wait_for_staging()
            self.manager.save(self.counter.step)
        return losses


def flip_byte(path: Path, position: float = 0.5) -> None:
    """Changes one byte at a relative position of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * position)] ^= 0xFF
    path.write_bytes(data)


def truncate(path: Path) -> None:
    """Cuts a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
