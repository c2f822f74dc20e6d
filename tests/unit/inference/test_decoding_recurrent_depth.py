import copy
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from flame.errors import ConfigError
from flame.inference.decoders.recurrent_depth import RecurrentDepthDecoder, RecurrentDepthOptions
from flame.inference.engine import Engine
from flame.models.build import model_class, plain_model
from flame.models.config import fit_tokenizer, tiny_config
from flame.plugin import load_plugin

TEXTS = ["the cat", "a", "one old tree sees some birds"]
GREEDY = {"temperature": 0.0, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def engine(materials) -> Engine:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)
    plugin = load_plugin("huginn_raven")
    config = tiny_config(plugin)
    fit_tokenizer(config, tokenizer)
    model = plain_model(model_class(plugin, config, "causal_lm"), config, seed=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * 3 if parameter.ndim > 1 else parameter)
    model.config.use_cache = True
    return Engine(model, tokenizer, plugin)


def made(engine: Engine, texts: list[str], **options: Any) -> Any:
    decoder = RecurrentDepthDecoder(engine, RecurrentDepthOptions(**options))
    return decoder.run([decoder.encoder.encode({"prompt": text}) for text in texts])


def test_greedy_is_the_models_own_generate_at_every_depth(engine: Engine) -> None:
    texts = set()
    for steps in (1, 2, 6):
        (completion,) = made(engine, ["the cat"], num_steps=steps, **GREEDY)
        ids = [engine.tokenizer.bos_token_id, *engine.tokenizer("the cat", add_special_tokens=False).input_ids]
        own = engine.model.generate(  # type: ignore[operator]
            torch.tensor([ids]), max_new_tokens=6, do_sample=False, num_steps=steps
        )
        assert completion.text == engine.tokenizer.decode(own[0, len(ids) :], skip_special_tokens=True)
        texts.add(completion.text)
    assert len(texts) > 1


def test_a_batch_is_its_rows(engine: Engine) -> None:
    decoder = RecurrentDepthDecoder(engine, RecurrentDepthOptions(**GREEDY))
    assert decoder.pads()
    assert made(engine, TEXTS, **GREEDY) == [made(engine, [text], **GREEDY)[0] for text in TEXTS]


def test_tokens_that_settle_early_say_how_soon(engine: Engine) -> None:
    options: dict[str, Any] = {**GREEDY, "num_steps": 12, "exit_criterion": "latent-diff"}
    (early,) = made(engine, ["the cat"], exit_threshold=1e9, **options)
    assert early.figures["mean_steps"] == 2  # the first look has nothing to compare with
    (late,) = made(engine, ["the cat"], exit_threshold=1e-9, **options)
    assert late.figures["mean_steps"] == 12
    assert late.text == made(engine, ["the cat"], num_steps=12, **GREEDY)[0].text
    assert made(engine, ["the cat"], **GREEDY)[0].figures == {}


def test_drafts_that_all_steps_check_give_the_text_of_all_steps(engine: Engine) -> None:
    plain = made(engine, ["the cat"], num_steps=6, **GREEDY)
    assert made(engine, ["the cat"], num_steps=6, draft_steps=2, draft_tokens=3, **GREEDY) == plain


@pytest.mark.parametrize(
    "given, message",
    [
        ({"exit_threshold": 0.1}, "--exit_threshold has no effect without --exit_criterion"),
        ({"draft_tokens": 4}, "--draft_tokens has no effect without --draft_steps"),
        ({"draft_steps": 2}, "--draft_steps decodes greedily"),
        ({"draft_steps": 2, "temperature": 0.0, "exit_criterion": "kl"}, "--exit_criterion cannot be had together"),
        ({"num_steps": 0}, "--num_steps 0 is out of range"),
        ({"num_steps": 4, "exit_criterion": "kl", "min_steps": 4}, "no token can stop before step 4, of --num_steps 4"),
        ({"num_steps": 8, "exit_criterion": "kl", "check_every": 4}, "before step 8, of --num_steps 8"),
        ({"exit_criterion": "kl", "exit_threshold": -1.0}, "--exit_threshold -1.0 is out of range"),
        ({"exit_criterion": "kl", "exit_threshold": float("nan")}, "--exit_threshold nan"),
        ({"state_seed": 2**63}, "--state_seed 9223372036854775808 is out of range"),
        ({"draft_steps": 2, "temperature": 0.0, "repetition_penalty": 1.2}, "--repetition_penalty 1.2 is not known"),
        ({"draft_steps": 2, "temperature": 0.0, "cache_lookup": "always-last"}, "--cache_lookup always-last with"),
        (
            {"draft_steps": 2, "temperature": 0.0, "cache_lookup": "latest-compress-s4"},
            "--cache_lookup latest-compress",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecurrentDepthOptions(**given).check(given)


def test_exits_are_compared_with_the_models_own_depth(engine: Engine) -> None:
    mean = engine.model.config.mean_recurrence
    with pytest.raises(ConfigError, match=f"of --num_steps {mean}"):
        RecurrentDepthDecoder(engine, RecurrentDepthOptions(exit_criterion="kl", min_steps=mean))


@pytest.mark.parametrize("asked", [{"repetition_penalty": 1.3}, {"suppress_tokens": [70]}])
def test_drafts_are_refused_where_the_folder_asks_for_what_they_do_not_heed(
    engine: Engine, asked: dict[str, Any]
) -> None:
    model: Any = copy.copy(engine.model)
    model.generation_config = GenerationConfig(**asked)
    drafting = {**GREEDY, "num_steps": 6, "draft_steps": 2}
    with pytest.raises(ConfigError, match=next(iter(asked))):
        made(Engine(model, engine.tokenizer, engine.plugin), ["the cat"], **drafting)
    if "repetition_penalty" in asked:  # which an option takes back
        texts = [
            made(one, ["the cat"], repetition_penalty=1.0, **drafting)
            for one in (engine, Engine(model, engine.tokenizer, engine.plugin))
        ]
        assert texts[0] == texts[1]


def test_what_the_model_refuses_is_the_users_to_mend(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="exit_criterion 'mood'"):
        made(engine, ["a"], exit_criterion="mood", **GREEDY)
    with pytest.raises(ConfigError, match="cache_lookup 'memory'"):
        made(engine, ["a"], cache_lookup="memory", **GREEDY)
