import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from .configuration_hgrn_asr import HgrnAsrConfig
from .modeling_hgrn_encoder import HgrnEncoder, layers_to_keep_whole, make_encoder, pad_mask


class Subsampling(nn.Module):
    """Convolutions of stride 2 over time, [B, T, F] to [B, ceil(T / factor), D]; one projection if the factor is 1.

    A step hears its own frames and the one before them, none after: so a causal encoder behind it can be streamed.
    """

    def __init__(self, config: HgrnAsrConfig):
        super().__init__()
        count = config.subsampling.bit_length() - 1
        widths = [config.num_mel_bins, *[config.hidden_size] * count]
        self.widths = widths[:-1]
        """Channels that go into each convolution."""
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, kernel_size=3, stride=2) for before, after in zip(widths, widths[1:], strict=False)
        )
        self.projection = nn.Linear(widths[-1], config.hidden_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, features: Tensor, mask: Tensor | None, tails: list[Tensor] | None = None) -> Tensor:
        """[B, T, F] to [B, T', D].

        Args:
            features: [B, T, F].
            mask: [B, T] bool, False where there is padding.
            tails: of a stream, the last input of every convolution [B, F or D, 1], which are used and replaced.
        """
        hidden = features.to(self.projection.weight.dtype).transpose(1, 2)  # [B, F, T]
        for index, convolution in enumerate(self.convolutions):
            if mask is not None:
                hidden = hidden * mask.unsqueeze(1)
                mask = mask[:, ::2]
            odd = hidden.shape[-1] % 2  # of the last step, which may lack a frame
            before = hidden.new_zeros(*hidden.shape[:2], 1) if tails is None else tails[index].to(hidden.dtype)
            if tails is not None:
                tails[index] = hidden[..., -1:].detach()
            hidden = F.silu(convolution(F.pad(torch.cat([before, hidden], -1), (0, odd))))
        return self.projection(hidden.transpose(1, 2)) + self.bias


class HgrnAsrPreTrainedModel(PreTrainedModel):
    """What transformers wants to know of the family."""

    config_class = HgrnAsrConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, HgrnEncoder):
            nn.init.zeros_(module.lower_bounds)
        elif isinstance(module, Subsampling):
            # Masked frames would be zero vectors else, at which gradients of norms explode.
            nn.init.normal_(module.bias, std=self.config.initializer_range)
        else:
            super()._init_weights(module)


class HgrnAsrModel(HgrnAsrPreTrainedModel):
    """Features [B, T, F] to hidden states [B, T', D], with T' = ceil(T / subsampling)."""

    def __init__(self, config: HgrnAsrConfig):
        super().__init__(config)
        self.subsampling = Subsampling(config)
        self.encoder = make_encoder(config)
        self._no_split_modules = layers_to_keep_whole(self.encoder)
        self.post_init()

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None, **kwargs) -> BaseModelOutput:
        """Args:
        input_features: [B, T, F] of the family's feature extractor.
        attention_mask: [B, T], 1 where there is a frame, 0 in the padding behind them.
        """
        mask = pad_mask(attention_mask)
        hidden = self.subsampling(input_features, mask)
        if mask is not None:
            mask = mask[:, :: self.config.subsampling]
        return BaseModelOutput(last_hidden_state=self.encoder(hidden, mask))


class HgrnAsrForCTC(HgrnAsrPreTrainedModel):
    """The model with its head: logits [B, T', V], in which ``pad_token_id`` is the blank."""

    def __init__(self, config: HgrnAsrConfig):
        super().__init__(config)
        self.model = HgrnAsrModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def _get_feat_extract_output_lengths(self, input_lengths: Tensor) -> Tensor:
        """Steps of the logits for so many frames."""
        return -(-input_lengths // self.config.subsampling)

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> CausalLMOutput:
        """Args:
        input_features: [B, T, F].
        attention_mask: [B, T], as in ``HgrnAsrModel``.
        labels: [B, L] ids of the transcript, -100 behind it.
        """
        hidden = self.model(input_features, attention_mask=attention_mask).last_hidden_state
        logits = self.lm_head(self.dropout(hidden))
        loss = None if labels is None else self._ctc_loss(logits, attention_mask, labels)
        return CausalLMOutput(loss=loss, logits=logits)

    def stream(self, input_features: Tensor, state: dict | None = None) -> tuple[Tensor, dict]:
        """Goes on listening: logits of the next frames, equal to those of the whole.

        Args:
            input_features: [B, n, F], the next frames; n is a multiple of ``subsampling`` but in the last call.
            state: what the call before gave; None at the beginning.

        Returns:
            Logits [B, ceil(n / subsampling), V], and the state for the next call.

        Raises:
            ValueError: the model listens in both directions, or has a backbone.
        """
        if self.config.bidirectional or self.config.backbone:
            raise ValueError("only a model with bidirectional = false and no backbone can transcribe as it listens")
        front = self.model.subsampling
        if state is None:
            batch = input_features.shape[0]
            tails = [input_features.new_zeros(batch, width, 1) for width in front.widths]
            state = {"tails": tails, "layers": {}}
        hidden = front(input_features, None, state["tails"])
        return self.lm_head(self.model.encoder(hidden, None, state["layers"])), state

    def _ctc_loss(self, logits: Tensor, attention_mask: Tensor | None, labels: Tensor) -> Tensor:
        frames = logits.new_full((len(logits),), 0, dtype=torch.long)
        frames += logits.shape[1]
        if attention_mask is not None:
            frames = self._get_feat_extract_output_lengths(attention_mask.sum(1).long())
        return F.ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1),
            labels.clamp(min=0),
            frames,
            (labels >= 0).sum(1),
            blank=self.config.pad_token_id,
            reduction=self.config.ctc_loss_reduction,
            zero_infinity=self.config.ctc_zero_infinity,
        )
