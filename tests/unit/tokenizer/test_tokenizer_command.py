"""`flame tokenizer`: whole folders or none, the same text gives the same folder, and mistakes are one line."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from flame.cli import main
from flame.tokenizer.byte_bpe import BytePairTraining
from flame.tokenizer.byte_lengths import token_bytes
from flame.tokenizer.folder import save_tokenizer
from flame.tokenizer.load import load_tokenizer
from flame.tokenizer.special_tokens import SETS


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def train(folder: Path, corpus: Path, *options: str) -> int:
    return main(["tokenizer", "train", str(folder), "--data", str(corpus), "--vocab-size", "600", *options])


@pytest.mark.parametrize("kind", ["bpe", "sp-bpe"])
def test_the_same_text_gives_the_same_folder(corpus, tmp_path, kind):
    # Room for all characters of the text, which differs from one Python to another.
    options = ("--kind", kind, "--special", "nanochat", "--max_chars", "1e5", "--vocab-size", "1000")
    for name in ("a", "b"):
        assert train(tmp_path / name, corpus, *options) == 0
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first == second and {"tokenizer.json", "chat_template.jinja", "training.json"} <= set(first)


def test_backends_give_the_same_folder(corpus, tmp_path):
    for backend in ("tokenizers", "rustbpe"):
        assert train(tmp_path / backend, corpus, "--backend", backend) == 0
    assert contents(tmp_path / "tokenizers") == contents(tmp_path / "rustbpe")


def test_the_summary_says_what_came_out(corpus, tmp_path, capsys):
    train(tmp_path / "a", corpus, "--max_document_chars", "1000", "--vocab-size", "100000")
    printed = capsys.readouterr().out
    assert "fewer than asked for" in printed and "documents cut short" in printed
    assert "<|bos|> (bos) <|eos|> (eos) <|pad|> (pad)" in printed
    assert f'model.tokenizer_path = "{tmp_path / "a"}"' in printed
    assert len(printed.splitlines()) < 24


def test_a_budget_is_kept_and_shared_by_weight(corpus, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("en\u00ede words " * 20_000)
    words = ["--data", str(corpus), str(other), "--weights", "1", "3", "--max_chars", "40000"]
    assert main(["tokenizer", "train", str(tmp_path / "a"), *words, "--vocab_size", "300"]) == 0
    read = json.loads((tmp_path / "a" / "training.json").read_text())["sources"]
    characters = [read[str(path)]["characters"] for path in (corpus, other)]
    assert sum(characters) == 40_000 and characters[0] > 0


def test_sources_of_several_formats_are_read_together(corpus, tmp_path):
    (tmp_path / "code.py").write_text("def f():\n    pass\n" * 100)
    words = ["--data", str(corpus), str(tmp_path / "code.py"), "--format", "auto", "txt", "--vocab_size", "300"]
    assert main(["tokenizer", "train", str(tmp_path / "a"), *words]) == 0
    read = json.loads((tmp_path / "a" / "training.json").read_text())["sources"]
    assert read[str(tmp_path / "code.py")]["characters"] == 1800


def test_files_with_invalid_utf8_are_left_out_and_named_or_an_error(tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "good.txt").write_text("good text " * 50)
    (folder / "bad.txt").write_bytes(b"bad \xff text")
    assert train(tmp_path / "a", folder) == 0
    assert f"1 left out: invalid UTF-8, first {folder}/bad.txt: invalid UTF-8 (byte 4)" in capsys.readouterr().out
    assert train(tmp_path / "b", folder, "--on_bad_row", "error") == 2
    assert f"{folder}/bad.txt: invalid UTF-8 (byte 4)" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_folder_is_replaced_only_when_asked_and_only_if_it_holds_a_tokenizer(corpus, tmp_path, capsys):
    target = tmp_path / "a"
    target.mkdir()
    assert train(target, corpus, "--special", "none") == 0  # an empty folder is no obstacle
    before = contents(target)
    assert train(target, corpus) == 2
    assert "holds a tokenizer already: name another folder, or give --overwrite" in capsys.readouterr().err
    assert contents(target) == before
    assert train(target, corpus, "--overwrite") == 0
    assert contents(target) != before
    (target / "model.safetensors").write_bytes(b"weights")
    before = contents(target)
    assert train(target, corpus, "--overwrite") == 2
    assert "holds more than a tokenizer (model.safetensors), which --overwrite would remove" in capsys.readouterr().err
    assert contents(target) == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    assert train(tmp_path / "thesis", corpus, "--overwrite") == 2
    assert "exists and is no tokenizer folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "thesis"]  # and nothing is left behind


def test_a_save_that_fails_leaves_the_old_tokenizer_and_no_draft(corpus, tmp_path, monkeypatch, capsys):
    target = tmp_path / "a"
    train(target, corpus, "--special", "none")
    before = contents(target)

    def full(self, folder):
        Path(folder).mkdir()
        (Path(folder) / "tokenizer.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    assert train(target, corpus, "--overwrite") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert contents(target) == before and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_chat_template_of_the_users_own_is_saved(corpus, tmp_path, capsys):
    template = tmp_path / "chat.jinja"
    template.write_text("{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}")
    assert train(tmp_path / "a", corpus, "--chat-template", str(template)) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "user: Hi\n"
    template.write_text("{% if %}")
    assert train(tmp_path / "b", corpus, "--chat-template", str(template)) == 2
    assert "the chat template does not compile (line 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vocab_size", "0"], "'0' is not a number of tokens"),
        (["--max_chars", "1.5"], "'1.5' is not a number of characters"),
        (["--weights", "1", "2"], "give a positive number for each of the 1 sources"),
        (["--pattern", "(a"], "does not compile"),
        (["--format", "auto", "txt"], "give one, or one for each of the 1 sources"),
        (["--special", "plain", "--add_special", "<|bos|>"], "is there twice"),
        (["--chat_template", "nothing.jinja"], "--chat_template nothing.jinja cannot be read"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_read(tmp_path, options, message, capsys):
    assert train(tmp_path / "a", tmp_path / "no_such_corpus.jsonl", *options) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "x"], "there is no --data"),
        (["evil"], "no verb 'evil': use train or eval. Did you mean 'eval'?"),
        (["eval", "./nothing"], "no tokenizer folder at './nothing'"),
    ],
)
def test_what_is_missing_is_said(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["tokenizer", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_source_without_text_is_an_error(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text(" \n")
    assert train(tmp_path / "a", tmp_path / "empty.txt") == 2
    assert "there is no text in" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["bpe", "sp-unigram", "sp-bpe"])
def test_bits_per_byte_are_right_for_every_kind(trained, texts, kind):
    tokenizer = load_tokenizer(str(trained("--kind", kind)))
    counts = token_bytes(tokenizer)
    assert counts[tokenizer.all_special_ids].sum() == 0
    for text in texts[-6:]:
        assert int(counts[tokenizer(text, add_special_tokens=False).input_ids].sum()) == len(text.encode())


def test_without_byte_fallback_unknown_characters_have_no_bytes(trained):
    """Bits per byte are exact only where every byte of a text is in some token."""
    tokenizer = load_tokenizer(str(trained("--kind", "sp-bpe")))
    layout = json.loads(tokenizer.backend_tokenizer.to_str())
    layout["model"]["byte_fallback"] = False
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(layout))
    ids = tokenizer("a\U0001f600").input_ids
    assert tokenizer.unk_token_id in ids
    assert int(token_bytes(tokenizer)[ids].sum()) == 1


def test_a_failed_check_after_saving_is_not_hidden(trained, monkeypatch, tmp_path, texts):
    other = AutoTokenizer.from_pretrained(trained("--special", "none"))
    backend = BytePairTraining(600, "gpt4", SETS["plain"].tokens).run(iter(texts))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *args, **kwargs: other)
    with pytest.raises(RuntimeError, match="does not load as it was saved"):
        save_tokenizer(tmp_path / "a", backend, SETS["plain"], {})
    assert not list(tmp_path.iterdir())
