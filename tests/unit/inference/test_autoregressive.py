import copy
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flame.errors import ConfigError
from flame.inference.batches import left_padded
from flame.inference.decoders.autoregressive import AutoregressiveDecoder, AutoregressiveOptions
from flame.inference.engine import Engine
from flame.models.build import model_class, plain_model
from flame.models.config import fit_tokenizer, tiny_config
from flame.plugin import load_plugin
from tests.runs import LLAMA

FAMILIES = ["llama", "gla", "nanochat", "deepseek_v3", "gpt2"]
TEXTS = ["the cat", "a", "one old tree sees some birds and then", "red house é"]


@pytest.fixture(scope="module")
def tokenizer(materials) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)


def engine_of(family: str, tokenizer: PreTrainedTokenizerFast) -> Engine:
    """A small model with weights large enough to prefer some tokens clearly."""
    plugin = load_plugin(family)
    config = tiny_config(plugin)
    fit_tokenizer(config, tokenizer)
    model = plain_model(model_class(plugin, config, "causal_lm"), config, seed=3).eval()
    model.config.use_cache = True
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * 4 if parameter.ndim > 1 else parameter)
        head: Any = model.get_output_embeddings()
        if not head.weight.any():  # nanochat begins with a head of zeros
            head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return Engine(model, tokenizer, plugin)


def decoder_of(engine: Engine, *stops: str, **options: Any) -> AutoregressiveDecoder:
    return AutoregressiveDecoder(engine, AutoregressiveOptions(**options), stops)


def prompts_of(decoder: AutoregressiveDecoder, texts: list[str]) -> Any:
    return [decoder.encoder.encode({"prompt": text}) for text in texts]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_transformers_own_and_a_batch_is_its_rows(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    engine = engine_of(family, tokenizer)
    decoder = decoder_of(engine, temperature=0.0, max_new_tokens=12)
    prompts = prompts_of(decoder, TEXTS)
    alone = [decoder.run([prompt])[0] for prompt in prompts]
    for prompt, completion in zip(prompts, alone, strict=True):
        ids = torch.tensor([prompt.ids])
        own = engine.model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)  # type: ignore[operator]
        new = own[0, ids.shape[1] :]
        assert completion.tokens == len(new)
        assert completion.text == tokenizer.decode(new, skip_special_tokens=True)
    assert len({completion.text for completion in alone}) > 1
    if decoder.pads():
        assert decoder.run(prompts) == alone
    else:
        assert decoder.run([prompts[0], prompts[0]]) == [alone[0], alone[0]]
    assert decoder.pads() is (family != "gla")


@pytest.fixture(scope="module")
def biased(tokenizer: PreTrainedTokenizerFast) -> tuple[Engine, torch.Tensor]:
    """A model whose logits are the same whatever it reads, and those logits [V]."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**LLAMA, "bos_token_id": 0, "eos_token_id": 1}))
    logits = torch.full((320,), -30.0)
    logits[10:16] = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -1.0])
    model.lm_head = torch.nn.Linear(64, 320)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(logits)
    return Engine(model.eval(), tokenizer, load_plugin("llama")), logits


@pytest.mark.parametrize(
    "options, support",
    [
        ({"top_k": 0}, 6),
        ({"top_k": 3}, 3),
        ({"top_k": 0, "top_p": 0.6}, 2),  # 0.394 + 0.239 are the first to reach it
        ({"top_k": 0, "min_p": 0.3}, 3),  # e^-1 = 0.37 of the likeliest, e^-1.5 = 0.22
        ({"top_k": 5, "top_p": 0.95, "temperature": 2.0}, 5),
        ({"top_k": 0, "temperature": 0.5, "min_p": 0.1}, 3),  # e^-2 = 0.14, e^-3 = 0.05
    ],
)
def test_samples_follow_the_truncated_distribution(biased: Any, options: dict[str, Any], support: int) -> None:
    engine, logits = biased
    rows, new = 60, 50
    torch.manual_seed(1)
    heat = options.get("temperature", 1.0)
    sampling = AutoregressiveOptions(**{"temperature": 1.0, **options}).sampling()
    ids = torch.zeros(rows, 1, dtype=torch.long)
    written = engine.model.generate(input_ids=ids, max_new_tokens=new, min_new_tokens=new, **sampling)
    counts = torch.bincount(written[:, 1:].flatten(), minlength=320)[10:16]
    assert counts.sum() == rows * new
    expected = torch.zeros(6)
    expected[:support] = (logits[10 : 10 + support] / heat).softmax(0)
    assert (counts[support:] == 0).all()
    deviation = (expected * (1 - expected) / (rows * new)).sqrt()
    assert ((counts / (rows * new) - expected).abs() <= 4 * deviation + 1e-9).all()


def test_a_penalty_on_repetition_keeps_tokens_from_coming_back(biased: Any) -> None:
    engine, _ = biased
    free = decoder_of(engine, temperature=0.0, max_new_tokens=4)
    held = decoder_of(engine, temperature=0.0, max_new_tokens=4, repetition_penalty=5.0)
    (prompt,) = prompts_of(free, ["the"])
    text = free.run([prompt])[0].text
    assert len(set(text)) == 1
    assert len(set(held.run([prompt])[0].text)) == 4


def test_rows_end_at_their_own_stop_and_say_so(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = engine_of("llama", tokenizer)
    plain = decoder_of(engine, temperature=0.0, max_new_tokens=16)
    prompts = prompts_of(plain, TEXTS[:3])
    whole = plain.run(prompts)
    stops = [whole[0].text[4:7], whole[1].text[2:3]]
    for prompt, full, short in zip(
        prompts, whole, decoder_of(engine, *stops, **vars(plain.options)).run(prompts), strict=True
    ):
        positions = [full.text.find(stop) for stop in stops if stop in full.text]
        assert short.text == (full.text[: min(positions)] if positions else full.text), prompt.text
        assert (short.finish, short.stop in stops) == (("stop", True) if positions else (full.finish, False))
        assert short.tokens < full.tokens if positions else short.tokens == full.tokens


def test_the_stream_is_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = engine_of("llama", tokenizer)
    plain = decoder_of(engine, temperature=0.0, max_new_tokens=16)
    (prompt,) = prompts_of(plain, ["the cat"])
    stop = plain.run([prompt])[0].text[5:8]
    for decoder in (plain, decoder_of(engine, stop, **vars(plain.options))):
        pieces: list[str] = []
        (completion,) = decoder.run([prompt], pieces.append)
        assert "".join(pieces) == completion.text
        assert len([piece for piece in pieces if piece]) > 2


def test_an_end_ends_the_text_but_not_before_it_may(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = engine_of("llama", tokenizer)
    model: Any = copy.deepcopy(engine.model)
    model.lm_head = torch.nn.Linear(64, model.config.vocab_size)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[int(tokenizer.eos_token_id)] = 5.0  # type: ignore[arg-type]
        model.lm_head.bias[70] = 1.0
    engine = Engine(model, tokenizer, engine.plugin)
    decoder = decoder_of(engine, temperature=0.0, max_new_tokens=6)
    (prompt,) = prompts_of(decoder, ["a"])
    (short,) = decoder.run([prompt])
    assert (short.text, short.tokens, short.finish) == ("", 1, "eos")
    (longer,) = decoder_of(engine, temperature=0.0, max_new_tokens=6, min_new_tokens=3).run([prompt])
    assert (longer.tokens, longer.finish) == (4, "eos")
    (full,) = decoder_of(engine, temperature=0.0, max_new_tokens=6, min_new_tokens=6).run([prompt])
    assert (full.tokens, full.finish) == (6, "length")


def test_spaces_given_back_come_first_in_every_row(tokenizer: PreTrainedTokenizerFast) -> None:
    decoder = decoder_of(engine_of("llama", tokenizer), temperature=0.0, max_new_tokens=3)
    prompts = prompts_of(decoder, ["the ", "the", "one old "])
    ids, mask = left_padded([prompt.ids for prompt in prompts], 1, "cpu")
    written = decoder.written(
        prompts,
        None,
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=1,
    )
    assert [tokenizer.decode(row[-1:])[0] == " " for row in written] == [True, False, True]
    assert [decoder.run([prompt])[0].text for prompt in prompts] == [row.text for row in decoder.run(prompts)]


def test_a_stop_is_not_looked_for_in_spaces_given_back(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = engine_of("llama", tokenizer)
    plain = decoder_of(engine, temperature=0.0, max_new_tokens=12)
    (prompt,) = prompts_of(plain, ["the "])
    whole = plain.run([prompt])[0]
    assert whole.text and not whole.text.startswith(" ")
    stopping = decoder_of(engine, " ", **vars(plain.options))
    (short,) = stopping.run([prompt])
    assert short.text == whole.text.partition(" ")[0] != ""
    pieces: list[str] = []
    stopping.run([prompt], pieces.append)
    assert "".join(pieces) == short.text


def test_what_a_folder_asks_of_the_search_does_not_change_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = engine_of("llama", tokenizer)
    decoder = decoder_of(engine, temperature=0.0, max_new_tokens=8)
    prompts = prompts_of(decoder, ["the cat", "a"])
    expected = decoder.run(prompts)
    for asked in (
        {"num_beams": 3, "return_dict_in_generate": True, "num_return_sequences": 2, "output_scores": True},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"prompt_lookup_num_tokens": 2},
        {"stop_strings": ["e"], "max_time": 1e-9},
    ):
        engine.model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=1, **asked)
        assert decoder.run(prompts) == expected, asked
        assert decoder.run(prompts[:1]) == expected[:1], asked


def test_more_than_a_table_of_positions_holds_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = engine_of("gpt2", tokenizer)
    limit = engine.model.config.max_position_embeddings
    decoder = decoder_of(engine, temperature=0.0, max_new_tokens=limit)
    (prompt,) = prompts_of(decoder, ["the cat"])
    with pytest.raises(ConfigError, match=f"has {limit} positions .* at most {limit - len(prompt.ids)}"):
        decoder.run([prompt])


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p"])
def test_options_that_greedy_decoding_ignores_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name} has no effect"):
        AutoregressiveOptions(temperature=0.0).check([name, "temperature"])


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e-40, 1e40, -0.5])
def test_a_temperature_that_logits_cannot_be_divided_by_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="--temperature"):
        AutoregressiveOptions(temperature=value).check()


def test_a_least_length_above_the_greatest_is_refused() -> None:
    with pytest.raises(ConfigError, match="--min_new_tokens 9 exceeds"):
        AutoregressiveOptions(max_new_tokens=8, min_new_tokens=9).check()
