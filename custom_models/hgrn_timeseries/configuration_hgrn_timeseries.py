from typing import Any

from transformers import PreTrainedConfig

POOLINGS = ("mean", "last", "attention")


class HgrnTimeseriesConfig(PreTrainedConfig):
    """Classes or numbers of time series by HGRN, or by any backbone that reads hidden states.

    ``num_labels``, ``id2label`` and ``problem_type`` mean what they mean in all of transformers.

    Args:
        num_channels: C, values of a step.
        input_vocab_size: levels that values are rounded to, each with an embedding; None to project the values.
        missing_indicator: whether the model sees which values are missing; they read as the mean.
        patch_size: steps of the series for each step of the encoder.
        hidden_size: D.
        num_hidden_layers: layers of HGRN.
        intermediate_size: width of the gated MLP; None for 2 D.
        bidirectional: whether the encoder reads from both ends.
        backbone: the config of another encoder, with its ``model_type``, in place of HGRN; its layers are its own.
        pooling: what stands for a series: the ``mean`` of its steps, its ``last`` one, or a weighted mean that is
            learned (``attention``).
        dropout: after mixers, MLPs and before the head.
        norm_eps: epsilon of the norms.
        initializer_range: standard deviation of fresh weights.
        label_mean: of numbers to predict; the head says by how many deviations they differ from it.
        label_std: their standard deviation in the training set.

    Raises:
        ValueError: sizes that cannot be.
    """

    model_type = "hgrn_timeseries"

    def __init__(
        self,
        num_channels: int = 1,
        input_vocab_size: int | None = None,
        missing_indicator: bool = False,
        patch_size: int = 1,
        hidden_size: int = 128,
        num_hidden_layers: int = 4,
        intermediate_size: int | None = None,
        bidirectional: bool = True,
        backbone: dict[str, Any] | None = None,
        pooling: str = "mean",
        dropout: float = 0.1,
        norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        label_mean: float = 0.0,
        label_std: float = 1.0,
        **kwargs,
    ):
        if min(num_channels, patch_size, hidden_size, num_hidden_layers) < 1:
            raise ValueError("num_channels, patch_size, hidden_size and num_hidden_layers must be at least 1")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")
        if input_vocab_size is not None and (input_vocab_size < 2 or missing_indicator):
            raise ValueError(
                f"input_vocab_size {input_vocab_size} must be at least 2, and missing_indicator false: a missing value "
                "has a level of its own"
            )
        self.num_channels = num_channels
        self.input_vocab_size = input_vocab_size
        self.missing_indicator = missing_indicator
        self.patch_size = patch_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = 2 * hidden_size if intermediate_size is None else intermediate_size
        self.bidirectional = bidirectional
        self.backbone = backbone
        self.pooling = pooling
        self.dropout = dropout
        self.norm_eps = norm_eps
        self.initializer_range = initializer_range
        self.label_mean = label_mean
        self.label_std = label_std
        super().__init__(**kwargs)

    @property
    def input_width(self) -> int:
        """Numbers that the feature extractor gives for a step."""
        return self.num_channels * (2 if self.missing_indicator else 1)
