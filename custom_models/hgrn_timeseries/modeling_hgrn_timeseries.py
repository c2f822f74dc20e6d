import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from .configuration_hgrn_timeseries import HgrnTimeseriesConfig
from .modeling_hgrn_encoder import HgrnEncoder, layers_to_keep_whole, make_encoder, pad_mask


class SeriesEmbedding(nn.Module):
    """Values [B, T, C] to hidden states [B, ceil(T / patch), D]; levels have an embedding for each channel."""

    def __init__(self, config: HgrnTimeseriesConfig):
        super().__init__()
        self.patch, self.levels = config.patch_size, config.input_vocab_size
        if self.levels is None:
            self.projection = nn.Linear(self.patch * config.input_width, config.hidden_size, bias=False)
        else:
            rows = self.patch * config.num_channels * self.levels
            self.embedding = nn.Embedding(rows, config.hidden_size)
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """``mask`` [B, T] is False in padding, which reads as zeros."""
        if mask is not None:
            values = values * mask.unsqueeze(-1)
        values = F.pad(values, (0, 0, 0, -values.shape[1] % self.patch))
        patches = values.unflatten(1, (-1, self.patch)).flatten(2)  # [B, T', patch * C]
        if self.levels is None:
            return self.projection(patches.to(self.projection.weight.dtype)) + self.bias
        offsets = torch.arange(patches.shape[-1], device=patches.device) * self.levels
        return self.embedding(patches.long() + offsets).mean(2) + self.bias


class Pooling(nn.Module):
    """Hidden states [B, T, D] to one for each series [B, D]."""

    def __init__(self, config: HgrnTimeseriesConfig):
        super().__init__()
        self.kind = config.pooling
        if self.kind == "attention":
            self.score = nn.Linear(config.hidden_size, 1, bias=False)  # one would change no weight

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """``mask`` [B, T] is False in padding; a row of padding gives zeros."""
        mask = hidden.new_ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask
        if self.kind == "last":
            last = (mask.sum(1) - 1).clamp(min=0)
            chosen = F.one_hot(last, hidden.shape[1]).to(hidden.dtype) * mask
            return torch.einsum("bt,btd->bd", chosen, hidden)
        if self.kind == "mean":
            return (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        scores = self.score(hidden).squeeze(-1).float().masked_fill(~mask, torch.finfo(torch.float32).min)
        weights = scores.softmax(1) * mask
        return torch.einsum("bt,btd->bd", weights.to(hidden.dtype), hidden)


class HgrnTimeseriesPreTrainedModel(PreTrainedModel):
    """What transformers wants to know of the family."""

    config_class = HgrnTimeseriesConfig
    base_model_prefix = "model"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, HgrnEncoder):
            nn.init.zeros_(module.lower_bounds)
        elif isinstance(module, SeriesEmbedding):
            # Constant stretches would be zero vectors else, at which gradients of norms explode.
            nn.init.normal_(module.bias, std=self.config.initializer_range)
        else:
            super()._init_weights(module)


class HgrnTimeseriesModel(HgrnTimeseriesPreTrainedModel):
    """Values [B, T, C] to hidden states [B, T', D], with T' = ceil(T / patch_size)."""

    def __init__(self, config: HgrnTimeseriesConfig):
        super().__init__(config)
        self.embedding = SeriesEmbedding(config)
        self.encoder = make_encoder(config)
        self._no_split_modules = layers_to_keep_whole(self.encoder)
        self.post_init()

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None, **kwargs) -> BaseModelOutput:
        """Args:
        input_values: [B, T, C] of the family's feature extractor.
        attention_mask: [B, T], 1 where there is a step, 0 in the padding behind them.
        """
        mask = pad_mask(attention_mask)
        hidden = self.embedding(input_values, mask)
        return BaseModelOutput(last_hidden_state=self.encoder(hidden, patch_mask(mask, self.config.patch_size)))


class HgrnTimeseriesForSequenceClassification(HgrnTimeseriesPreTrainedModel):
    """The model with pooling and a head: logits [B, num_labels], or predicted numbers."""

    def __init__(self, config: HgrnTimeseriesConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = HgrnTimeseriesModel(config)
        self.pooling = Pooling(config)
        self.dropout = nn.Dropout(config.dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Args:
        input_values: [B, T, C].
        attention_mask: [B, T], as in ``HgrnTimeseriesModel``.
        labels: [B] classes, or [B, num_labels] numbers where ``problem_type`` is ``regression``.
        """
        hidden = self.model(input_values, attention_mask=attention_mask).last_hidden_state
        mask = patch_mask(pad_mask(attention_mask), self.config.patch_size)
        logits = self.score(self.dropout(self.pooling(hidden, mask)))
        if self.config.problem_type == "regression":
            # In the head's weights, large numbers would decay, and change by steps far too small for them.
            logits = logits.float() * self.config.label_std + self.config.label_mean
        loss = None
        if labels is not None and self.config.problem_type == "regression":
            loss = F.mse_loss(logits.float().view(labels.shape), labels.float())
        elif labels is not None:
            loss = F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def patch_mask(mask: Tensor | None, patch: int) -> Tensor | None:
    """[B, T] to [B, ceil(T / patch)]: whether there is a step in a patch."""
    return None if mask is None else mask[:, ::patch]
