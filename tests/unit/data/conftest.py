"""A byte tokenizer, a source of numbered documents, and a builder of loaders."""

import json
from pathlib import Path

import pytest
from data_stand_ins import Data, Dataloader, Source, document
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flame.data import TextEncoder
from flame.data.loader import Loader, build_loader


@pytest.fixture(scope="session")
def built_in_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tokenizers are kept for all tests: training one takes seconds."""
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(autouse=True)
def own_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, built_in_tokenizers: Path
) -> None:
    """A cache for every test, which holds nothing but tokenizers."""
    cache = tmp_path_factory.mktemp("flame_cache")
    (cache / "tokenizers").symlink_to(built_in_tokenizers)
    monkeypatch.setenv("FLAME_CACHE", str(cache))


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token; ids 256 and 257 are <s> and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def encoder(byte_tokenizer: PreTrainedTokenizerFast) -> TextEncoder:
    return TextEncoder(byte_tokenizer, add_bos=True, add_eos=True)


@pytest.fixture
def numbered(tmp_path: Path) -> Source:
    """A jsonl source of 60 numbered documents."""
    path = tmp_path / "numbered.jsonl"
    path.write_text("".join(json.dumps({"text": document(i)}) + "\n" for i in range(60)))
    return Source(str(path))


@pytest.fixture
def make_loader(encoder: TextEncoder):
    """Builds loaders with small defaults, and closes them after the test."""
    loaders: list[Loader] = []

    def make(*sources: Source, world: int = 1, rank: int = 0, workers: int = 0, **changes) -> Loader:
        options = dict(
            data=Data(),
            encoder=encoder,
            seq_len=48,
            context_len=0,
            varlen=False,
            global_batch_size=8,
            local_batch_size=2,
            seed=7,
            repeat=True,
        )
        options.update(changes)
        loader = build_loader(
            sources=sources,
            dp_rank=rank,
            dp_world_size=world,
            dataloader=Dataloader(num_workers=workers),
            **options,  # pyright: ignore[reportArgumentType]
        )
        loaders.append(loader)
        return loader

    yield make
    for loader in loaders:
        loader.close()
