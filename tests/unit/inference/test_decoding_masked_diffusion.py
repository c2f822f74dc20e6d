from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from flame.errors import ConfigError
from flame.inference.decoders.masked_diffusion import MaskedDiffusionDecoder, MaskedDiffusionOptions
from flame.inference.engine import Engine
from flame.models.build import model_class, plain_model
from flame.models.config import fit_tokenizer, tiny_config
from flame.plugin import load_plugin

TEXTS = ["the cat", "a", "one old tree sees some birds"]


@pytest.fixture(scope="module")
def engine(materials) -> Engine:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)
    plugin = load_plugin("llada")
    config = tiny_config(plugin)
    fit_tokenizer(config, tokenizer)
    config.vocab_size, config.mask_token_id = 320, 319
    model = plain_model(model_class(plugin, config, "causal_lm"), config, seed=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * 8 if parameter.ndim > 1 else parameter)
    return Engine(model, tokenizer, plugin)


def decoder_of(engine: Engine, *stops: str, **options: Any) -> MaskedDiffusionDecoder:
    return MaskedDiffusionDecoder(engine, MaskedDiffusionOptions(**options), stops)


def made(decoder: MaskedDiffusionDecoder, texts: list[str], show: Any = None) -> Any:
    return decoder.run([decoder.encoder.encode({"prompt": text}) for text in texts], show)


OPTIONS: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8, "steps": 8, "suppress_eos": True}


def test_the_text_is_what_the_models_own_generate_fills_in(engine: Engine) -> None:
    (completion,) = made(decoder_of(engine, **OPTIONS), ["the cat"])
    ids = [engine.tokenizer.bos_token_id, *engine.tokenizer("the cat", add_special_tokens=False).input_ids]
    own = engine.model.generate(torch.tensor([ids]), **OPTIONS)  # type: ignore[operator]
    assert completion.text == engine.tokenizer.decode(own[0, len(ids) :], skip_special_tokens=True)
    assert (completion.tokens, completion.finish) == (16, "length")


def test_the_ends_of_the_folder_end_a_text(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (plain,) = made(decoder_of(engine, **{**OPTIONS, "suppress_eos": False}), ["the cat"])
    written = engine.tokenizer(plain.text, add_special_tokens=False).input_ids
    monkeypatch.setattr(engine.model.generation_config, "eos_token_id", [engine.tokenizer.eos_token_id, written[0]])
    (ended,) = made(decoder_of(engine, **{**OPTIONS, "suppress_eos": False}), ["the cat"])
    assert (ended.finish, ended.text) == ("eos", "")
    (whole,) = made(decoder_of(engine, **OPTIONS), ["the cat"])
    assert (whole.finish, whole.tokens) == ("length", 16)


def test_a_batch_is_its_rows(engine: Engine) -> None:
    decoder = decoder_of(engine, **OPTIONS)
    rows = made(decoder, TEXTS)
    assert rows == [made(decoder, [text])[0] for text in TEXTS]
    assert len({row.text for row in rows}) == 3


def test_the_stream_is_the_text_block_by_block(engine: Engine) -> None:
    pieces: list[str] = []
    (completion,) = made(decoder_of(engine, **OPTIONS), ["the cat"], pieces.append)
    assert "".join(pieces) == completion.text
    stop = completion.text[4:6]
    pieces.clear()
    (short,) = made(decoder_of(engine, stop, **OPTIONS), ["the cat"], pieces.append)
    assert "".join(pieces) == short.text == completion.text.partition(stop)[0]
    assert short.finish == "stop"


def test_the_seed_decides_what_is_drawn(engine: Engine) -> None:
    decoder = decoder_of(engine, **{**OPTIONS, "temperature": 1.0})
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(made(decoder, ["the cat"])[0].text)
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    "options", [{"threshold": 1e-3}, {"cache": "prefix"}, {"cfg_scale": 1.5}, {"remasking": "random"}]
)
def test_every_option_reaches_the_model(engine: Engine, options: dict[str, Any]) -> None:
    base = {"max_new_tokens": 16, "block_length": 16, "suppress_eos": True}
    plain = made(decoder_of(engine, **base), ["the cat"])[0].text
    assert made(decoder_of(engine, **base, **options), ["the cat"])[0].text != plain


@pytest.mark.parametrize(
    "given, message",
    [
        ({"steps": 4, "threshold": 0.9}, "--steps and --threshold both"),
        ({"refresh": 2}, "--refresh has no effect without --cache"),
        ({"remasking": "lazy"}, "--remasking 'lazy' is not among low_confidence, random"),
        ({"remasking": "random", "threshold": 0.9}, "--remasking has no effect with --threshold"),
        ({"threshold": 1.2}, "--threshold 1.2 is out of range"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MaskedDiffusionOptions(**given).check(given)


def test_lengths_that_do_not_divide_are_the_users_to_mend(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="block_length = 7 does not divide max_new_tokens = 16"):
        made(decoder_of(engine, max_new_tokens=16, block_length=7), ["a"])
