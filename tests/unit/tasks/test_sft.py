"""Fine-tuning: where it starts, how long conversations may be, and what the exported folder will say."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, PreTrainedTokenizerFast

from flame.config import JobConfig
from flame.data.chat.builtin import PLAIN_TEMPLATE
from flame.errors import ConfigError, DataError
from flame.models.build import model_class
from flame.models.config import fit_tokenizer
from flame.plugin import load_plugin
from flame.tasks.sft import SFT, SFTOptions
from tests.runs import LLAMA, Materials, materials

__all__ = ["materials"]

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def made(materials: Materials, job: JobConfig | None = None, template: str = "", **options: Any) -> SFT:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)
    if template:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = template
    return SFT(SFTOptions(**options), tokenizer=tokenizer, config=job or JobConfig())


def extended(task: SFT) -> Any:
    config = AutoConfig.for_model(**LLAMA)
    fit_tokenizer(config, task.tokenizer)
    task.extend(model_class(load_plugin("llama"), config, "causal_lm"), config)
    return config


def test_the_template_goes_into_the_tokenizer_that_is_exported(materials: Materials) -> None:
    assert made(materials).tokenizer.chat_template == PLAIN_TEMPLATE
    assert made(materials, template=CHATML).tokenizer.chat_template == CHATML


def test_generation_stops_at_the_end_of_a_turn(materials: Materials) -> None:
    task = made(materials, template=CHATML)
    ending = task.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert extended(task).eos_token_id == [ending, task.tokenizer.eos_token_id]
    plain = made(materials)
    assert extended(plain).eos_token_id == plain.tokenizer.eos_token_id


def test_a_template_that_ends_answers_with_nothing_is_told(
    materials: Materials, caplog: pytest.LogCaptureFixture
) -> None:
    extended(made(materials, template="{% for message in messages %}{{ message.content }}{% endfor %}"))
    assert "cannot learn to stop" in caplog.text


def test_a_template_that_writes_no_conversation_is_refused(materials: Materials) -> None:
    with pytest.raises(ConfigError, match="cannot write a question and an answer"):
        extended(made(materials, template="{{ raise_exception('no') }}"))


def test_the_plain_template_needs_a_token_to_end_answers_with(materials: Materials) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no EOS token"):
        SFT(SFTOptions(), tokenizer=tokenizer, config=JobConfig())


def longest(task: SFT) -> int:
    pieces = task.encoder().encode([{"prompt": "a", "completion": "the cat sees a bird and then eats " * 30}])[0]
    assert isinstance(pieces, list)
    return len(pieces[0])


def test_conversations_are_as_long_as_a_row_or_a_piece(materials: Materials) -> None:
    job = JobConfig()
    job.training.seq_len = 64
    assert longest(made(materials, job)) == 64
    assert longest(made(materials, job, max_tokens=20)) == 20
    with pytest.raises(ConfigError, match="max_tokens = 65"):
        made(materials, job, max_tokens=65)
    job.training.varlen, job.training.context_len = True, 32
    assert longest(made(materials, job)) == 32


def exported(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").touch()
    return folder


def test_it_starts_from_the_folder_of_the_config(materials: Materials, tmp_path: Path) -> None:
    folder = exported(tmp_path / "model", PreTrainedTokenizerFast.from_pretrained(materials.tokenizer))
    job = JobConfig()
    job.model.config = str(folder)
    made(materials, job)
    assert job.checkpoint.initial_load_path == str(folder) and job.checkpoint.initial_load_in_hf

    job = JobConfig()
    job.model.config, job.checkpoint.initial_load_path = str(folder), "elsewhere"
    made(materials, job)
    assert job.checkpoint.initial_load_path == "elsewhere"

    job = JobConfig()
    job.model.config, job.checkpoint.enable = str(folder), False
    with pytest.raises(ConfigError, match="checkpoint.enable"):
        made(materials, job)


def test_random_weights_are_told(materials: Materials, caplog: pytest.LogCaptureFixture) -> None:
    made(materials)
    assert "random weights" in caplog.text


def test_a_tokenizer_that_is_not_the_models_is_refused(materials: Materials, tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)
    job = JobConfig()
    job.model.config = str(exported(tmp_path / "same", tokenizer))
    made(materials, job, template=CHATML)  # more tokens are fine
    tokenizer.add_tokens(["wizard"])
    job = JobConfig()
    job.model.config = str(exported(tmp_path / "other", tokenizer))
    with pytest.raises(ConfigError, match="'wizard' is None instead of"):
        made(materials, job)


def test_longest_conversation_must_not_be_negative() -> None:
    with pytest.raises(ConfigError, match="max_tokens = -1"):
        SFTOptions(max_tokens=-1)
