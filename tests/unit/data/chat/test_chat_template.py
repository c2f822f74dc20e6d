"""Templates to ids and masks: what transformers makes of them, and what the assistant says of it."""

import copy
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from chat_templates import CHATML, FORGETFUL, GEMMA, GENERATION, LLAMA3, SPECIAL, ZEPHYR, talk
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flame.data.chat.builtin import PLAIN_TEMPLATE, choose_template
from flame.data.chat.conversation import conversation
from flame.data.chat.encoder import ChatEncoder
from flame.data.chat.template import ChatTemplate
from flame.data.sources.records import BadRow
from flame.errors import ConfigError, DataError
from flame.tokenizer.chat_template import NANOCHAT_TEMPLATE
from flame.tokenizer.special_tokens import SETS

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "zephyr": ZEPHYR, "gemma": GEMMA, "plain": PLAIN_TEMPLATE}
TEMPLATES["generation"] = GENERATION
CONVERSATIONS = [
    talk("The cat?", "It sees trees."),
    talk("  spaces \n", " and\n\nlines ", "Köln 🙂 你好", "Grüße!"),
    talk("a", "b", "c", "d", "e", "f"),
]


def encoded(tokenizer: PreTrainedTokenizerFast, template: str, *records: dict[str, Any], **options: Any) -> list[Any]:
    return list(ChatEncoder(tokenizer, template, **{"max_tokens": 10_000, **options}).encode(list(records)))


def plain_ids(ids: np.ndarray) -> list[int]:
    return np.where(ids < 0, ~ids, ids).tolist()


def scored_runs(tokenizer: PreTrainedTokenizerFast, ids: np.ndarray) -> list[str]:
    """The text of every run of scored tokens."""
    borders = np.flatnonzero(np.diff(ids >= 0)) + 1
    return [str(tokenizer.decode(run.tolist())) for run in np.split(ids, borders) if run[0] >= 0]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["short", "odd", "long"])
def test_ids_are_those_of_transformers(any_tokenizer: PreTrainedTokenizerFast, name: str, messages: Any) -> None:
    ids = encoded(any_tokenizer, TEMPLATES[name], {"messages": messages})[0]
    any_tokenizer.chat_template = TEMPLATES[name]
    theirs: Any = any_tokenizer.apply_chat_template(messages, return_dict=True)
    assert plain_ids(ids) == theirs["input_ids"]


def test_system_messages_and_tools_reach_the_template(any_tokenizer: PreTrainedTokenizerFast) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
    messages = [
        *talk("Weather?", system="Be brief."),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    as_openai = [*messages]
    written = {"name": "weather", "arguments": '{"city": "Köln"}'}
    as_openai[2] = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": written}]}
    ids = encoded(any_tokenizer, CHATML, {"messages": as_openai, "tools": tools})[0]
    any_tokenizer.chat_template = CHATML
    theirs: Any = any_tokenizer.apply_chat_template(messages, tools=tools, return_dict=True)  # pyright: ignore
    assert plain_ids(ids) == theirs["input_ids"]


def test_the_marks_of_a_template_score_what_transformers_scores(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    body = "{%- generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    template = GENERATION[: GENERATION.index("{%- macro")] + GENERATION[GENERATION.index("{%- for") :]
    template = template.replace("{{ answer(message) }}", body)  # theirs loses count inside macros
    chat_tokenizer.chat_template = template
    for messages in CONVERSATIONS:
        theirs: Any = chat_tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        for source in (template, GENERATION):
            ids = encoded(chat_tokenizer, source, {"messages": messages})[0]
            assert (ids >= 0).astype(int).tolist() == theirs["assistant_masks"]


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("chatml", "One.<|im_end|>", "Two.<|im_end|>"),
        ("llama3", "One.<|eot|>", "Two.<|eot|>"),
        ("gemma", "One.<end_of_turn>", "Two.<end_of_turn>"),
        ("zephyr", "One.</s>", "Two.</s>"),
        ("generation", "One.<|im_end|>", "Two.<|im_end|>"),
        ("plain", " One.</s>", " Two.</s>"),
    ],
)
def test_answers_are_scored_with_their_ends_and_nothing_else(
    chat_tokenizer: PreTrainedTokenizerFast, name: str, first: str, last: str
) -> None:
    ids = encoded(chat_tokenizer, TEMPLATES[name], {"messages": talk("a", "One.", "b", "Two.")})[0]
    assert scored_runs(chat_tokenizer, ids) == [first, last]


def test_special_tokens_in_messages_stay_text(any_tokenizer: PreTrainedTokenizerFast) -> None:
    names = ["<s>", "</s>", *SPECIAL]
    attack = " ".join(names) + "<|im_<|im_end|>end|><s<s>>"
    control = set(any_tokenizer.convert_tokens_to_ids(names))  # type: ignore[arg-type]
    for template in TEMPLATES.values():
        clean, attacked = encoded(
            any_tokenizer,
            template,
            {"messages": talk("a", "b", "c", "d")},
            {"messages": talk(attack, attack + "x", "c", attack)},
        )
        found = [[token for token in plain_ids(ids) if token in control] for ids in (clean, attacked)]
        assert found[0] == found[1]


def test_the_text_of_a_spelt_special_token_is_kept(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encoded(chat_tokenizer, CHATML, {"messages": talk("say <|im_end|> twice", "<|im_end|><|im_end|>")})[0]
    assert "user\nsay <|im_end|> twice<|im_end|>" in chat_tokenizer.decode(plain_ids(ids))
    assert scored_runs(chat_tokenizer, ids) == ["<|im_end|><|im_end|><|im_end|>"]
    assert (ids == chat_tokenizer.convert_tokens_to_ids("<|im_end|>")).sum() == 1


def test_many_spelt_special_tokens_are_broken_one_by_one() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {}, ["<s>", "aba", ""])
    rendered = template.render(conversation(talk("<s>" * 100_000 + "ababa", "b")))  # an old way took minutes
    assert rendered.parts == ["<", *["s><"] * 99_999, "s>a", "ba", "bab"]


def test_a_special_token_of_one_character_is_refused_in_messages() -> None:
    """Nothing can be put into it that keeps the tokenizer from seeing it."""
    backend = Tokenizer(models.BPE(vocab={chr(code): code for code in range(1, 124)}, merges=[]))
    backend.add_special_tokens(["|", "|a", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    for asked in ("a|b", "|a"):
        row, fine = encoded(
            tokenizer, PLAIN_TEMPLATE, {"prompt": asked, "completion": "c"}, {"messages": talk("a", "b")}
        )
        assert isinstance(row, BadRow) and row.reason == "special tokens in the text"
        assert isinstance(fine, np.ndarray)


def test_a_look_alike_that_the_tokenizer_normalises_is_refused_or_stays_text() -> None:
    """Special tokens that are matched after normalisation can be spelt in fullwidth letters."""
    vocabulary = {chr(code): code for code in range(1, 127)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken("[END]", normalized=True, special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=AddedToken("[END]", normalized=True))
    row = encoded(tokenizer, PLAIN_TEMPLATE, {"messages": talk("［ＥＮＤ］", "b")})[0]
    assert isinstance(row, BadRow) and row.reason == "special tokens in the text"


def test_a_template_that_rewrites_earlier_turns_is_refused(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    assert isinstance(encoded(chat_tokenizer, FORGETFUL, {"messages": talk("a", "hm!b")})[0], np.ndarray)
    with pytest.raises(DataError, match=r"turn 2 differently .* \{% generation %\}"):
        encoded(chat_tokenizer, FORGETFUL, {"messages": talk("a", "hm!b", "c", "d")})


def test_what_a_template_refuses_is_a_bad_row(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = encoded(chat_tokenizer, GEMMA, {"messages": talk("a", "b", system="c")}, {"messages": talk("a", "b")})
    assert rows[0].reason == "refused by the chat template" and "System role not supported" in rows[0].detail
    assert isinstance(rows[1], np.ndarray)
    broken = encoded(chat_tokenizer, "{{ messages[7].content }}", {"messages": talk("a", "b")})[0]
    assert broken.reason == "refused by the chat template"


def test_a_template_cannot_reach_python(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    for source in ("{{ messages.__class__.__mro__ }}", "{% set _ = messages.append(1) %}"):
        row = encoded(chat_tokenizer, source, {"messages": talk("a", "b")})[0]
        assert row.reason == "refused by the chat template"


def test_a_template_that_is_no_jinja_is_refused(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="no Jinja"):
        ChatEncoder(chat_tokenizer, "{% for x in %}", max_tokens=10)


def test_dates_do_not_depend_on_the_day(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    template = "{{ strftime_now('%d %b %Y') }}" + PLAIN_TEMPLATE
    ids = encoded(chat_tokenizer, template, {"messages": talk("a", "b")})[0]
    assert str(chat_tokenizer.decode(plain_ids(ids))).startswith("26 Jul 2024")


def test_the_template_is_chosen_by_name_file_or_tokenizer(chat_tokenizer: PreTrainedTokenizerFast, tmp_path) -> None:
    chat_tokenizer.chat_template = None
    assert choose_template(chat_tokenizer, "").source == PLAIN_TEMPLATE
    file = tmp_path / "chatml.jinja"
    file.write_text(CHATML)
    assert choose_template(chat_tokenizer, str(file)).source == CHATML
    chat_tokenizer.chat_template = ZEPHYR
    assert choose_template(chat_tokenizer, "").source == ZEPHYR
    assert choose_template(chat_tokenizer, "plain").source == PLAIN_TEMPLATE
    with pytest.raises(ConfigError, match="'chatmll' is no file"):
        choose_template(chat_tokenizer, "chatmll")


@pytest.fixture
def nanochat_tokenizer(chat_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"extra_special_tokens": list(SETS["nanochat"].tokens)})  # type: ignore[dict-item]
    tokenizer.bos_token = tokenizer.eos_token = "<|bos|>"
    return tokenizer


def test_nanochats_template_is_found_by_its_tokens(nanochat_tokenizer: PreTrainedTokenizerFast) -> None:
    assert choose_template(nanochat_tokenizer, "").what == "nanochat's"
    assert choose_template(nanochat_tokenizer, "plain").source == PLAIN_TEMPLATE
    with pytest.raises(ConfigError, match=r"no special token <\|bos\|>"):
        choose_template(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())), "nanochat")


def test_nanochat_scores_code_but_not_its_output(nanochat_tokenizer: PreTrainedTokenizerFast) -> None:
    record = {"question": "How many?", "answer": "It is <<1+1=2>>2.\n#### 2", "system": "Count <|bos|>."}
    encoder = ChatEncoder(nanochat_tokenizer, NANOCHAT_TEMPLATE, max_tokens=1000)
    ids = encoder.encode([record])[0]
    assert isinstance(ids, np.ndarray)
    assert nanochat_tokenizer.decode(plain_ids(ids)) == (
        "<|bos|><|user_start|>Count <|bos|>.\n\nHow many?<|user_end|><|assistant_start|>It is "
        "<|python_start|>1+1<|python_end|><|output_start|>2<|output_end|>2.\n#### 2<|assistant_end|>"
    )
    assert scored_runs(nanochat_tokenizer, ids) == [
        "It is <|python_start|>1+1<|python_end|>",
        "2.\n#### 2<|assistant_end|>",
    ]
    assert (np.array(plain_ids(ids)) == nanochat_tokenizer.bos_token_id).sum() == 1
    assert encoder.ending() == nanochat_tokenizer.convert_tokens_to_ids("<|assistant_end|>")


def test_the_encoder_travels_and_needs_neither_torch_nor_transformers(
    chat_tokenizer: PreTrainedTokenizerFast, tmp_path
) -> None:
    encoder = ChatEncoder(chat_tokenizer, CHATML, max_tokens=100)
    encoder.encode([{"messages": talk("a", "b")}])
    (tmp_path / "encoder").write_bytes(pickle.dumps(encoder))
    code = """
import pickle, sys
encoder = pickle.load(open(sys.argv[1], "rb"))
print(encoder.encode([{"prompt": "a", "completion": "b"}])[0].tolist(), {"torch", "transformers"} & set(sys.modules))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "encoder")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    mine = encoder.encode([{"prompt": "a", "completion": "b"}])[0]
    assert isinstance(mine, np.ndarray)
    assert done.stdout.split("] ")[0] + "]" == str(mine.tolist()) and done.stdout.endswith("set()\n")
