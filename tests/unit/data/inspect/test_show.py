"""`flame data show`: rows with the borders of documents, what is scored, and where they come from."""

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_stand_ins import Data, Source

from flame.cli import main as flame
from flame.data.inspect.render import Renderer
from flame.data.inspect.rows import Rows, is_scored
from flame.data.loader import Loader
from tests.runs import Materials, write_job


class PromptsNotScored:
    """Bytes of a text; those before a ``|`` are a prompt."""

    fingerprint = ""
    vocab_size = 259
    tokenizer_name = "bytes"

    def encode(self, records):
        return [self._ids(record["text"]) for record in records]

    @staticmethod
    def _ids(text: str) -> np.ndarray:
        ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        prompt = text.find("|") + 1
        return np.concatenate([~ids[:prompt], ids[prompt:]])


class Bytes:
    """Decodes bytes."""

    def decode(self, token_ids: list[int], **_: bool) -> str:
        return bytes(token_ids).decode()


def shown(loader: Loader, count: int, color: bool = False, tokens: bool = False) -> list[str]:
    rows = Rows(loader, 8)
    renderer = Renderer(Bytes(), ["a", "b"], rows.where, color, tokens)
    return [line for placed in islice(rows, count) for line in renderer.lines(placed)]


def jsonl(path: Path, texts: list[str]) -> Source:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Source(str(path))


def test_prompts_stand_in_brackets_and_rows_name_what_they_are_made_of(make_loader, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "x.jsonl", [f"ask {i:02}|say {i:02}." for i in range(40)])
    options = {"encoder": PromptsNotScored(), "seq_len": 35, "varlen": True, "data": Data(shuffle=False)}
    lines = shown(make_loader(source, **options), 1)
    assert lines == [
        "━━ step 1, row 0 (lane 0): 3 documents, 15 of 35 labels scored",
        "── [0:14] document 0 of a; positions restart at 0",
        f"   {tmp_path}/x.jsonl, row 1",
        "   ⟦ask 00|⟧say 00.",
        "── [14:28] document 24 of a; positions restart at 14",
        f"   {tmp_path}/x.jsonl, row 25",
        "   ⟦ask 24|⟧say 24.",
        "── [28:35] document 8 of a; positions restart at 28",
        f"   {tmp_path}/x.jsonl, row 9",
        "   ⟦ask 08|⟧",
        "   cut; the token that follows is scored: 's'",
    ]


def test_a_row_that_goes_on_says_so_and_padding_is_told(make_loader, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "x.jsonl", ["0123456789" * 2 + "abcdefghij" * 2])
    options = {"encoder": PromptsNotScored(), "seq_len": 25, "varlen": True, "repeat": False, "global_batch_size": 1}
    loader = make_loader(source, **options, local_batch_size=1)
    lines = [line for line in shown(loader, 2) if not line.startswith("   /")]
    assert lines == [
        "━━ step 1, row 0 (lane 0): 1 document, 25 of 25 labels scored",
        "── [0:25] document 0 of a; positions restart at 0",
        "   ⟦0⟧1234567890123456789abcde",
        "   cut; the token that follows is scored: 'f'",
        "━━ step 1, row 1 (lane 0): 1 document, 14 of 25 labels scored, 10 padding",
        "── [0:15] document 0 of a; positions restart at 0",
        "   ⟦f⟧ghijabcdefghij",
        "── padding, 10 tokens",
    ]


def test_colours_replace_brackets_on_a_terminal(make_loader, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "x.jsonl", ["a\nb|c"] * 30)
    lines = shown(make_loader(source, encoder=PromptsNotScored(), seq_len=5, varlen=True), 1, color=True)
    assert "   \033[2ma\033[0m" in lines and "   \033[2mb|\033[0mc" in lines
    assert not any("⟦" in line for line in lines)


def test_tokens_are_listed_with_the_label_that_is_learnt_there(make_loader, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "x.jsonl", ["a|bc"] * 30)
    lines = shown(make_loader(source, encoder=PromptsNotScored(), seq_len=4, varlen=True), 1, tokens=True)
    assert [line.split() for line in lines[3:]] == [
        ["0", "0", "97", "'a'", "->", "-"],
        ["1", "1", "124", "'|'", "->", "98", "'b'"],
        ["2", "2", "98", "'b'", "->", "99", "'c'"],
        ["3", "3", "99", "'c'", "->", "-"],
    ]


@pytest.mark.parametrize("packing", ["stream", "best_fit", "rows"])
@pytest.mark.parametrize("varlen", [False, True])
@pytest.mark.parametrize("mix", ["tokens", "documents"])
def test_what_is_shown_as_scored_are_the_labels_inside_the_row(
    make_loader, tmp_path: Path, packing: Any, varlen: bool, mix: Any
) -> None:
    sources = [
        jsonl(tmp_path / f"{name}.jsonl", [f"{name}{i:03}|" + name * (i % 50) for i in range(60)]) for name in "ab"
    ]
    options = {"encoder": PromptsNotScored(), "seq_len": 40, "data": Data(packing=packing, mix=mix, lanes_per_row=1)}
    rows = Rows(make_loader(*sources, varlen=varlen, **options), 8)
    for placed in islice(rows, 60):
        values, spans = placed.row.values, placed.row.spans or []
        text = bytes(values[0].tolist()).decode()
        scored = is_scored(placed.row)
        assert not any(scored[i] and values[1, i - 1] != values[0, i] for i in range(40))
        for span in spans:
            piece = text[span.start : span.stop]
            assert set(piece) <= {"ab"[span.source], *"0123456789|"}
            for i in range(span.start + 1, span.stop):  # what follows a document's own token is scored unless a prompt
                in_prompt = "|" in text[i : span.stop] and not text[i : span.stop].split("|")[0].strip("0123456789ab")
                is_answer = "|" in text[span.start : i]
                assert scored[i] or not is_answer or in_prompt
            assert rows.where(span).endswith(f"{'ab'[span.source]}.jsonl, row {span.document + 1}")
        if varlen:
            assert not any(scored[span.start] for span in spans)


def test_rows_are_those_of_training(make_loader, numbered) -> None:
    traced = [placed.row.values[0] for placed in islice(Rows(make_loader(numbered), 8), 16)]
    batches = make_loader(numbered, local_batch_size=8)
    trained = np.concatenate([inputs["input_ids"].numpy() for inputs, _ in islice(iter(batches), 2)])
    assert np.array_equal(np.stack(traced), trained)


def test_the_command_prints_rows_of_a_step(
    materials: Materials, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(materials, tmp_path / "run", {"data.sources": [{"path": str(materials.train)}]})
    words = ["data", "show", f"--job.config_file={job}", "-n", "2", "--step=3"]
    assert flame(words) == 0
    said = capsys.readouterr().out
    assert re.findall(r"━━ step (\d+), row (\d+)", said) == [("3", "0"), ("3", "1")]
    assert "\033" not in said and "</s>" in said and f"{materials.train}, row " in said
    assert flame([*words, "--color=always"]) == 0
    assert "\033[1m" in capsys.readouterr().out


@pytest.mark.parametrize("layout", [{"tensor_parallel_degree": 2}, {"data_parallel_shard_degree": 4}])
def test_a_job_of_many_processes_is_shown_by_one(
    layout: dict[str, int], materials: Materials, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write_job(materials, tmp_path / "plain")
    spread = write_job(materials, tmp_path / "spread", {f"parallelism.{key}": value for key, value in layout.items()})
    said = []
    for job in (plain, spread):
        assert flame(["data", "show", f"--job.config_file={job}", "-n", "9"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "words, said",
    [
        (["show", "-n", "0"], "-n and --step must be at least 1"),
        (["show", "--validation"], "the job has no [[validation.sources]]"),
        (["stats", "--steps=0"], "--steps must be at least 1"),
        (["show", "--colour=always"], "colour"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    words: list[str], said: str, materials: Materials, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *rest = words
    assert flame(["data", verb, f"--job.config_file={write_job(materials, tmp_path / 'run')}", *rest]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
