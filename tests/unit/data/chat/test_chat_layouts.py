"""Rows of every common layout become the same conversations, and rows that are none say why."""

import json
from typing import Any

import pytest
from chat_templates import talk

from flame.data.chat.conversation import Conversation, Unfit
from flame.data.chat.layouts import LAYOUTS, layout_of, read_record
from flame.data.sources.records import LAYOUT

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def read(record: dict[str, Any], with_code: bool = True) -> Conversation:
    return read_record(record, layout_of(record), with_code)


SAME: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": talk("Why?", "So.")}),
    ("messages", {"conversation": talk("Why?", "So."), "id": 7}),
    ("messages", {"messages": [{**turn, "tool_calls": None, "name": None} for turn in talk("Why?", "So.")]}),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, *talk("", "So.")[1:]]}),
    ("messages", {"messages": talk("Why?", "So.", "unanswered")}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}),
    ("prompt_completion", {"prompt": "Why?", "completion": "So."}),
    ("prompt_completion", {"prompt": "Why?", "response": "So.", "text": "Why? So."}),
    ("prompt_completion", {"question": "Why?", "answer": "So."}),
    ("prompt_completion", {"prompt": talk("Why?"), "completion": talk("", "So.")[1:]}),
    ("alpaca", {"instruction": "Why?", "output": "So."}),
    ("alpaca", {"instruction": "Why?", "input": "", "output": "So."}),
    ("gsm8k", {LAYOUT: "gsm8k", "question": "Why?", "answer": "So."}),
]


@pytest.mark.parametrize(("layout", "record"), SAME, ids=lambda value: value if isinstance(value, str) else None)
def test_layouts_are_found_by_their_columns(layout: str, record: dict[str, Any]) -> None:
    assert layout_of(record) == layout
    found = read(record).messages
    if isinstance(found[-1]["content"], list):
        assert found[-1]["content"] == [{"type": "text", "text": "So."}]
    else:
        assert found == talk("Why?", "So.")


def test_every_layout_but_text_has_a_reader() -> None:
    for layout in LAYOUTS:
        if layout != "text":
            with pytest.raises(Unfit):
                read_record({"other": 1}, layout, with_code=True)


def test_systems_and_inputs_join_the_conversation() -> None:
    assert read({"system": "Be.", "prompt": "a", "response": "b"}).messages == talk("a", "b", system="Be.")
    assert read({"instruction": "Add.", "input": "1 2", "output": "3"}).messages == talk("Add.\n\n1 2", "3")
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert read({"system": "Be.", "conversations": turns}).messages == talk("a", "b", system="Be.")
    assert read({"system": "Be.", "messages": talk("a", "b")}).messages == talk("a", "b", system="Be.")
    lists = {"prompt": talk("a"), "completion": talk("", "b")[1:]}
    assert read({"system_prompt": "Be.", **lists}).messages == talk("a", "b", system="Be.")
    own = talk("a", "b", system="Be brief.")  # goes before the column's
    assert read({"system": "Be.", "messages": own}).messages == own


def test_calculations_become_code_and_output() -> None:
    record = {"question": "q", "answer": "He has 5+5=$<<5+5=10>>10, then <<10/4=2.5>>2.5.\n#### 2.5"}
    assert layout_of(record) == "gsm8k"
    kinds = [(part["type"], part["text"]) for part in read(record).messages[1]["content"]]
    assert kinds == [
        ("text", "He has 5+5=$"),
        ("python", "5+5"),
        ("python_output", "10"),
        ("text", "10, then "),
        ("python", "10/4"),
        ("python_output", "2.5"),
        ("text", "2.5.\n#### 2.5"),
    ]
    assert read(record, with_code=False).messages[1]["content"] == "He has 5+5=$10, then 2.5.\n#### 2.5"


@pytest.mark.parametrize(
    "record",
    [
        {"question": "Which?", "choices": ["red", "blue"], "answer": 1},
        {"question": "Which?", "choices": ["red", "blue"], "answer": "B"},
        {"question": "Which?", "choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "answerKey": "B"},
    ],
)
def test_choices_are_listed_before_their_letters(record: dict[str, Any]) -> None:
    question, answer = read(record).messages
    assert "Which?\n- red=A\n- blue=B\n" in question["content"] and answer["content"] == "B"


def test_tool_calls_and_results_are_kept() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
        {"role": "assistant", "content": "It is 2."},
    ]
    found = read({"messages": messages, "tools": '[{"name": "f"}]'})
    assert found.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert found.messages[2]["tool_call_id"] == "1" and found.tools == [{"name": "f"}]
    assert [len(exchange) for exchange in found.exchanges] == [4]


def test_keys_that_parquet_fills_with_null_are_absent() -> None:
    arguments = {"city": "Paris", "query": None, "area": {"north": 1, "south": None}, "days": [1, None]}
    called = {"id": None, "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [*talk("x"), {"role": "assistant", "content": "", "tool_calls": [called]}]
    tools = [{"name": "f", "parameters": {"city": {"type": "string", "enum": None}, "query": None}}]
    found = read({"messages": messages, "tools": tools, "text": None})
    function = found.messages[1]["tool_calls"][0]["function"]
    assert function["arguments"] == {"city": "Paris", "area": {"north": 1}, "days": [1, None]}
    assert found.tools == [{"name": "f", "parameters": {"city": {"type": "string"}}}]
    called["function"]["arguments"] = '{"query": null}'  # but what somebody wrote stays
    function = read({"messages": messages}).messages[1]["tool_calls"][0]["function"]
    assert function["arguments"] == {"query": None}
    called["function"]["arguments"] = None
    assert read({"messages": messages}).messages[1]["tool_calls"][0]["function"]["arguments"] == {}


def test_columns_of_other_rows_do_not_count() -> None:
    absent = dict.fromkeys(("messages", "prompt", "completion", "instruction", "output", "choices", "text"))
    for record in ({"question": "Why?", "answer": "So."}, {"messages": talk("Why?", "So.")}):
        assert read({**absent, **record}).messages == talk("Why?", "So.")
    assert layout_of({**absent, "text": "plain"}) == "text"


BAD: list[tuple[str, Any]] = [
    ("empty conversation", []),
    ("empty conversation", "hello"),
    ("message is no object", ["hello"]),
    ("no assistant turn", talk("a")),
    ("wrong role order", [*talk("a", "b"), {"role": "assistant", "content": "c"}]),
    ("wrong role order", talk("a", "b")[1:]),
    ("wrong role order", [*talk("a", "b"), {"role": "system", "content": "c"}]),
    ("wrong role order", [{"role": "tool", "content": "c"}, *talk("a", "b")]),
    ("unknown role", [{"role": "wizard", "content": "c"}]),
    ("unknown role", [{"role": ["user"], "content": "c"}]),
    ("unknown role", [{"content": "c"}]),
    ("content is no text", [{"role": "user", "content": 3}]),
    ("content is no text", [{"role": "user"}]),
    ("empty content", talk("a", "")),
    ("empty content", talk(" \n", "b")),
    ("images, audio and video are not trained on", [{"role": "user", "content": [{"type": "image_url"}]}]),
    ("unknown part type", [{"role": "user", "content": [{"type": "hologram"}]}]),
    ("unknown part type", [{"role": "user", "content": [{"type": "python", "text": "1"}]}]),
    ("unknown part type", [{"role": "user", "content": [5]}]),
    ("part without text", [{"role": "user", "content": [{"type": "text", "text": None}]}]),
    ("tool calls that are none", [*talk("a"), {"role": "assistant", "tool_calls": [{"function": "f"}]}]),
    ("tool calls that are none", [*talk("a"), {"role": "assistant", "tool_calls": "f()"}]),
    ("tool calls that are none", [{"role": "user", "content": "a", "tool_calls": [CALL]}]),
    ("invalid UTF-8", talk("a\ud800", "b")),
    ("Unicode noncharacters", talk("a\ufdd0", "b")),
    (
        "invalid UTF-8",
        [*talk("a"), {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": "\\ud800"}'}]}],
    ),
    ("nested too deeply", [{"role": "user", "content": "a", "extra": json.loads("[" * 900 + "]" * 900)}]),
    (
        "nested too deeply",
        [
            *talk("a"),
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": json.loads("[" * 900 + "]" * 900)}]},
        ],
    ),
]


@pytest.mark.parametrize(("reason", "messages"), BAD)
def test_what_is_no_conversation_says_why(reason: str, messages: Any) -> None:
    with pytest.raises(Unfit) as caught:
        read_record({"messages": messages}, "messages", with_code=True)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("reason", "record"),
    [
        ("no known layout", {"url": "x"}),
        ("unknown role", {"conversations": [{"from": "wizard", "value": "x"}]}),
        ("unknown role", {"conversations": [{"from": {}, "value": "x"}]}),
        ("answer is none of the choices", {"question": "q", "choices": ["a"], "answer": 4}),
        ("answer is none of the choices", {"question": "q", "choices": ["a"]}),
        ("no choices", {"question": "q", "choices": [], "answer": 0}),
        ("content is no text", {"prompt": "a", "completion": 7}),
        ("content is no text", {"prompt": "a", "completion": None}),
        ("tools that are none", {"prompt": "a", "completion": "b", "tools": "{"}),
        ("tools that are none", {"prompt": "a", "completion": "b", "tools": [1]}),
    ],
)
def test_rows_of_other_layouts_say_what_is_wrong(reason: str, record: dict[str, Any]) -> None:
    with pytest.raises(Unfit) as caught:
        read(record)
    assert caught.value.reason == reason


def test_code_needs_a_template_that_knows_it() -> None:
    content = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    record = {"messages": [*talk("a"), {"role": "assistant", "content": content}]}
    assert read(record).messages[1]["content"] == content
    with pytest.raises(Unfit, match="Python code"):
        read(record, with_code=False)
