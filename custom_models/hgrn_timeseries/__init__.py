"""Classification and regression of time series by HGRN (https://arxiv.org/abs/2311.04823), or any other encoder."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

from flame.plugin import ModelPlugin

from .configuration_hgrn_timeseries import HgrnTimeseriesConfig
from .feature_extraction_hgrn_timeseries import HgrnTimeseriesFeatureExtractor
from .modeling_hgrn_timeseries import HgrnTimeseriesForSequenceClassification, HgrnTimeseriesModel

AutoConfig.register("hgrn_timeseries", HgrnTimeseriesConfig, exist_ok=True)
AutoFeatureExtractor.register(HgrnTimeseriesConfig, HgrnTimeseriesFeatureExtractor, exist_ok=True)
AutoModel.register(HgrnTimeseriesConfig, HgrnTimeseriesModel, exist_ok=True)
AutoModelForSequenceClassification.register(
    HgrnTimeseriesConfig, HgrnTimeseriesForSequenceClassification, exist_ok=True
)


def features(config: PreTrainedConfig) -> HgrnTimeseriesFeatureExtractor:
    """The feature extractor that a config asks for."""
    return HgrnTimeseriesFeatureExtractor(
        feature_size=config.num_channels,
        missing_indicator=config.missing_indicator,
        levels=config.input_vocab_size or 0,
    )


def forward_flops(config: PreTrainedConfig, length: int) -> int:
    """Products of matrices for ``length`` steps, without those of a backbone's attention."""
    width, steps = config.hidden_size, -(-length // config.patch_size)
    inner = (2 if config.bidirectional else 1) * width
    layer = 4 * width * inner + 3 * width * config.intermediate_size
    embedded = 0 if config.input_vocab_size else config.patch_size * config.input_width * width
    return 2 * steps * (embedded + config.num_hidden_layers * layer) + 2 * width * config.num_labels


PLUGIN = ModelPlugin(
    model_type="hgrn_timeseries",
    auto_classes={"sequence_classification": AutoModelForSequenceClassification},
    objective="classification",
    features=features,
    inner=lambda config: [config.backbone["model_type"]] if config.backbone else [],
    tiny=lambda: HgrnTimeseriesConfig(num_channels=2, hidden_size=32, num_hidden_layers=2, num_labels=4),
    forward_flops=forward_flops,
    refuses={
        "tensor": "its layers have no tensor-parallel plan",
        "pipeline": "its layers share what says where padding is",
        "context": "its recurrences look along the sequence",
    },
)
