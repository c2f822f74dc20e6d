"""Built-in tokenizers are trained once, load as HuggingFace folders, and tokens know their bytes."""

import os
import random
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from flame.errors import DataError
from flame.tokenizer import load
from flame.tokenizer.byte_lengths import token_bytes
from flame.tokenizer.load import load_tokenizer

NAME = "builtin:python-stdlib-1k"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAME_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield load_tokenizer(NAME)


def test_a_builtin_tokenizer_has_its_size_and_special_tokens(tokenizer):
    assert len(tokenizer) == 1024
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|bos|>", "<|eos|>", "<|pad|>")


def test_a_builtin_tokenizer_is_a_folder_that_transformers_loads(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    text = "def f(x):\n    return 'h\u00e9llo \U0001f600' + str(123456)\n"
    ids = AutoTokenizer.from_pretrained(tmp_path)(text).input_ids
    assert ids == load_tokenizer(str(tmp_path))(text).input_ids == tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text


def test_two_processes_that_ask_at_once_have_a_thing_built_once(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from flame.tokenizer.cache import build_once\n"
        "def build(draft):\n"
        "    time.sleep(0.3); draft.write_text(str(os.getpid()))\n"
        "print(build_once(Path(sys.argv[1]), build).read_text())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "thing")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in running]
    assert outputs[0] == outputs[1] and int(outputs[0]) in [process.pid for process in running]
    assert sorted(os.listdir(tmp_path)) == [".thing.lock", "thing"]  # and no draft is left beside it


@pytest.mark.slow
def test_two_processes_that_ask_at_once_get_the_same_tokenizer(tmp_path):
    code = (
        "import sys; from flame.tokenizer.load import load_tokenizer; "
        "print(load_tokenizer(sys.argv[1])('def f').input_ids)"
    )
    environment = {**os.environ, "FLAME_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", code, NAME]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    outputs = [process.communicate()[0] for process in running]
    assert outputs[0] == outputs[1] != b""
    folders = [path for path in (tmp_path / "tokenizers").iterdir() if not path.name.endswith(".lock")]
    assert len(folders) == 1  # and no draft is left beside it


@pytest.mark.parametrize("seed", range(5))
def test_token_bytes_sum_to_the_length_of_the_text(tokenizer, seed):
    rng = random.Random(seed)
    text = "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xA0, 0xD800), 0x1F600])) for _ in range(500))
    counts = token_bytes(tokenizer)
    assert counts.shape == (len(tokenizer),)
    assert int(counts[tokenizer(text).input_ids].sum()) == len(text.encode())


def test_special_tokens_stand_for_no_bytes_and_added_ones_for_their_own(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    extended = load_tokenizer(str(tmp_path))
    extended.add_tokens(["\u00e9t\u00e9"])
    counts = token_bytes(extended)
    assert counts[extended.all_special_ids].tolist() == [0, 0, 0]
    assert counts[-1] == 5 and len(counts) == 1025


def test_token_bytes_of_a_sentencepiece_vocabulary():
    vocab = {"<0x0A>": 0, "\u2581the": 1, "\u00e9": 2, "<unk>": 3, "####": 4}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert token_bytes(tokenizer).tolist() == [1, 4, 2, 0, 4]


def test_token_bytes_of_a_wordpiece_vocabulary():
    backend = Tokenizer(models.WordPiece(vocab={"<unk>": 0, "the": 1, "##m": 2, "<0x0A>": 3}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert token_bytes(tokenizer).tolist() == [0, 3, 1, 6]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "tokenizer_path is empty: name a folder"),
        ("./no/such/folder", "no tokenizer folder at './no/such/folder': name a folder"),
        ("builtin:python-stdlib", "write builtin:python-stdlib-8k"),
        ("builtin:nothing-8k", "write builtin:python-stdlib-8k"),
        ("some/tokenizer", "'some/tokenizer' cannot be loaded .the hub cannot be reached"),
    ],
)
def test_tokenizers_that_do_not_exist_are_one_line_with_the_remedy(path, message, monkeypatch):
    monkeypatch.setattr(load, "hub_is_reachable", lambda: False)
    with pytest.raises(DataError, match=message) as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_tokenizer_folder_is_an_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path))


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLAME_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot make .* name a writable folder .*FLAME_CACHE"):
        load_tokenizer(NAME)
