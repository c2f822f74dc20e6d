from typing import Any

from transformers import PreTrainedConfig

NORMALISATIONS = ("utterance", "global", "none")


class HgrnAsrConfig(PreTrainedConfig):
    """Speech recognition by CTC on HGRN, or on any backbone that reads hidden states.

    Args:
        vocab_size: V, characters or pieces of words and the blank, which is ``pad_token_id``.
        num_mel_bins: F, log-mel features of a frame.
        sampling_rate: of the recordings, in Hz; others are resampled.
        frame_length: of a frame, in seconds.
        frame_shift: between the beginnings of two frames, in seconds.
        normalise: features by the mean and deviation of each utterance, of the training set (``global``), or not.
        subsampling: frames for each step of the encoder, a power of two; by convolutions of stride 2.
        hidden_size: D.
        num_hidden_layers: layers of HGRN.
        intermediate_size: width of the gated MLP; None for 2 D.
        bidirectional: whether the encoder reads from both ends; if not, it can transcribe as it listens.
        backbone: the config of another encoder, with its ``model_type``, in place of HGRN; its layers are its own.
        dropout: after mixers, MLPs and before the head.
        norm_eps: epsilon of the norms.
        initializer_range: standard deviation of fresh weights.
        ctc_loss_reduction: ``sum`` or ``mean`` of the loss that the model gives for labels.
        ctc_zero_infinity: whether utterances too short for their transcript have no loss instead of an infinite one.

    Raises:
        ValueError: sizes that cannot be.
    """

    model_type = "hgrn_asr"

    def __init__(
        self,
        vocab_size: int = 32,
        num_mel_bins: int = 80,
        sampling_rate: int = 16000,
        frame_length: float = 0.025,
        frame_shift: float = 0.01,
        normalise: str = "utterance",
        subsampling: int = 4,
        hidden_size: int = 256,
        num_hidden_layers: int = 8,
        intermediate_size: int | None = None,
        bidirectional: bool = True,
        backbone: dict[str, Any] | None = None,
        dropout: float = 0.1,
        norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        ctc_loss_reduction: str = "sum",
        ctc_zero_infinity: bool = True,
        pad_token_id: int | None = 0,
        **kwargs,
    ):
        if subsampling < 1 or subsampling & (subsampling - 1):
            raise ValueError(f"subsampling {subsampling} must be 1, 2, 4, 8 ...")
        if normalise not in NORMALISATIONS:
            raise ValueError(f"normalise {normalise!r} is none of {', '.join(NORMALISATIONS)}")
        if normalise == "utterance" and not bidirectional:
            raise ValueError(
                "normalise 'utterance' hears all of it before the first step, so a model that listens in one direction "
                "gains nothing; set normalise to 'global', or bidirectional to true"
            )
        if not 0 < frame_shift <= frame_length:
            raise ValueError(f"frame_shift {frame_shift} must be above 0 and at most frame_length {frame_length}")
        if min(vocab_size, num_mel_bins, hidden_size, num_hidden_layers) < 1:
            raise ValueError("vocab_size, num_mel_bins, hidden_size and num_hidden_layers must be at least 1")
        if ctc_loss_reduction not in ("sum", "mean"):
            raise ValueError(f"ctc_loss_reduction {ctc_loss_reduction!r} must be 'sum' or 'mean'")
        self.vocab_size = vocab_size
        self.num_mel_bins = num_mel_bins
        self.sampling_rate = sampling_rate
        self.frame_length = frame_length
        self.frame_shift = frame_shift
        self.normalise = normalise
        self.subsampling = subsampling
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = 2 * hidden_size if intermediate_size is None else intermediate_size
        self.bidirectional = bidirectional
        self.backbone = backbone
        self.dropout = dropout
        self.norm_eps = norm_eps
        self.initializer_range = initializer_range
        self.ctc_loss_reduction = ctc_loss_reduction
        self.ctc_zero_infinity = ctc_zero_infinity
        kwargs.update(pad_token_id=pad_token_id)
        super().__init__(**kwargs)

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples for each step of the logits, by which pipelines find times."""
        return round(self.frame_shift * self.sampling_rate) * self.subsampling
