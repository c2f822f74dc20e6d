"""Sets of special tokens, what saved folders say of them, and nanochat's chat template."""

import jinja2
import pytest

from flame.errors import ConfigError
from flame.tokenizer.load import load_tokenizer
from flame.tokenizer.special_tokens import special_tokens

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "So: "},
            {"type": "python", "text": "1+1"},
            {"type": "python_output", "text": "2"},
            {"type": "text", "text": "2."},
        ],
    },
    {"role": "user", "content": [{"type": "text", "text": "2+2?"}]},
    {"role": "assistant", "tool_calls": [{"function": {"name": "python", "arguments": {"code": "2+2"}}}]},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "4."},
]
RENDERED = (
    "<|bos|><|user_start|>Be brief.\n\n1+1?<|user_end|><|assistant_start|>So: <|python_start|>1+1<|python_end|>"
    "<|output_start|>2<|output_end|>2.<|assistant_end|><|user_start|>2+2?<|user_end|><|assistant_start|>"
    "<|python_start|>2+2<|python_end|><|output_start|>4<|output_end|>4.<|assistant_end|>"
)
LEARNED = "So: <|python_start|>1+1<|python_end|>2.<|assistant_end|><|python_start|>2+2<|python_end|>4.<|assistant_end|>"


@pytest.fixture(scope="module")
def chat_tokenizer(trained):
    return load_tokenizer(str(trained("--special", "nanochat")))


def test_nanochats_tokens_come_last_in_its_order(chat_tokenizer):
    names = "bos user_start user_end assistant_start assistant_end python_start python_end output_start output_end"
    tokens = [f"<|{name}|>" for name in names.split()]
    assert chat_tokenizer.convert_tokens_to_ids(tokens) == list(range(1024 - 9, 1024))
    assert len(chat_tokenizer) == 1024
    assert (chat_tokenizer.bos_token, chat_tokenizer.eos_token, chat_tokenizer.pad_token) == ("<|bos|>",) * 3
    assert chat_tokenizer.assistant_end_token_id == chat_tokenizer.convert_tokens_to_ids("<|assistant_end|>")
    assert set(tokens) == set(chat_tokenizer.all_special_tokens)


def test_a_conversation_is_rendered_as_nanochat_does(chat_tokenizer):
    assert chat_tokenizer.apply_chat_template(CHAT, tokenize=False) == RENDERED
    prompt = chat_tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|bos|><|user_start|>Be brief.\n\n1+1?<|user_end|><|assistant_start|>"


def test_an_answer_of_a_tool_leaves_the_turn_open(chat_tokenizer):
    for asked in (False, True):
        text = chat_tokenizer.apply_chat_template(CHAT[:6], tokenize=False, add_generation_prompt=asked)
        assert text.endswith("<|output_start|>4<|output_end|>")


def test_the_template_marks_what_is_to_be_learned(chat_tokenizer):
    encoded = chat_tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    learned = [index for index, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert chat_tokenizer.decode(learned) == LEARNED


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "system", "content": "x"}], "a system message needs a user message"),
        ([CHAT[1], CHAT[0]], "a system message must be the first"),
        ([{"role": "robot", "content": "x"}], "a role is system, user, assistant or tool, not robot"),
        ([{"role": "tool", "content": "x"}], "a tool's answer must follow"),
        ([{"role": "assistant", "content": [{"type": "image", "text": ""}]}], "not image"),
        ([{"role": "user", "content": [{"type": "image", "text": ""}]}], "parts of type image"),
    ],
)
def test_conversations_that_cannot_be_rendered_say_why(chat_tokenizer, messages, message):
    with pytest.raises(jinja2.TemplateError, match=message):
        chat_tokenizer.apply_chat_template(messages, tokenize=False)


def test_tokens_of_the_users_own_play_the_parts_that_they_are_given(trained):
    options = ["--special", "[BOS],</s>", "--add_special", "<|x|>", "--bos", "[BOS]", "--eos", "</s>"]
    tokenizer = load_tokenizer(str(trained(*options)))
    assert tokenizer("[BOS]a</s><|x|>").input_ids == [1021, ord("a"), 1022, 1023]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("[BOS]", "</s>", None)
    assert tokenizer.decode([1021, ord("a"), 1022, 1023], skip_special_tokens=True) == "a"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "chatml"}, "no set of special tokens 'chatml': name one of plain, nanochat, none"),
        ({"name": "<|a|>,<|a|>"}, "special token '<|a|>' is there twice"),
        ({"name": "plain", "added": ["<|pad|>"]}, "special token '<|pad|>' is there twice"),
        ({"name": "<|a|>,"}, "special token '' is blank"),
        ({"name": "plain", "eos": "<|x|>"}, "--eos '<|x|>' is not among the special tokens"),
    ],
)
def test_sets_that_clash_are_refused(arguments, message):
    with pytest.raises(ConfigError) as caught:
        special_tokens(**arguments)
    assert message in str(caught.value)
