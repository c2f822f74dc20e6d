"""Speech recognition on HGRN (https://arxiv.org/abs/2311.04823) with a CTC head, or on any other encoder."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForCTC, PreTrainedConfig

from flame.plugin import ModelPlugin

from .configuration_hgrn_asr import HgrnAsrConfig
from .feature_extraction_hgrn_asr import HgrnAsrFeatureExtractor
from .modeling_hgrn_asr import HgrnAsrForCTC, HgrnAsrModel

AutoConfig.register("hgrn_asr", HgrnAsrConfig, exist_ok=True)
AutoFeatureExtractor.register(HgrnAsrConfig, HgrnAsrFeatureExtractor, exist_ok=True)
AutoModel.register(HgrnAsrConfig, HgrnAsrModel, exist_ok=True)
AutoModelForCTC.register(HgrnAsrConfig, HgrnAsrForCTC, exist_ok=True)


def features(config: PreTrainedConfig) -> HgrnAsrFeatureExtractor:
    """The feature extractor that a config asks for."""
    return HgrnAsrFeatureExtractor(
        feature_size=config.num_mel_bins,
        sampling_rate=config.sampling_rate,
        frame_length=config.frame_length,
        frame_shift=config.frame_shift,
        normalise=config.normalise,
    )


def forward_flops(config: PreTrainedConfig, length: int) -> int:
    """Products of matrices for ``length`` frames, without those of a backbone's attention."""
    width, steps = config.hidden_size, -(-length // config.subsampling)
    flops, before, frames = 0, config.num_mel_bins, length
    for _ in range(config.subsampling.bit_length() - 1):
        frames = -(-frames // 2)
        flops += 2 * frames * 3 * before * width
        before = width
    inner = (2 if config.bidirectional else 1) * width
    layer = 4 * width * inner + 3 * width * config.intermediate_size
    return flops + 2 * steps * (before * width + config.num_hidden_layers * layer + width * config.vocab_size)


PLUGIN = ModelPlugin(
    model_type="hgrn_asr",
    auto_classes={"ctc": AutoModelForCTC},
    objective="ctc",
    features=features,
    inner=lambda config: [config.backbone["model_type"]] if config.backbone else [],
    tiny=lambda: HgrnAsrConfig(num_mel_bins=16, hidden_size=32, num_hidden_layers=2, vocab_size=16, subsampling=2),
    forward_flops=forward_flops,
    refuses={
        "tensor": "its layers have no tensor-parallel plan",
        "pipeline": "its layers share what says where padding is",
        "context": "its convolutions and recurrences look along the sequence",
    },
)
