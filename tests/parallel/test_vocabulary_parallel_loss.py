"""Ranks that share the rows of an output weight compute the loss and gradients of the whole one.

Three processes are started once and work through every case; cases of two ranks run on the first two.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch._C._distributed_c10d import FileStore
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.multiprocessing.spawn import spawn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from flame import losses
from flame.losses import Vocabulary, cross_entropy_sum, linear_cross_entropy_sum
from flame.models.head import loss_in_head

RANKS, ROWS, WIDTH = 3, 300, 12
# What transformers calls it, where it knows it, and where the weight then is.
HEADS: dict[str, tuple[str, Placement]] = {
    "columns": ("colwise_gather_output", Shard(0)),
    "inputs": ("rowwise_split_input", Shard(1)),
    "replicated": ("", Replicate()),
    "columns but no bias": ("", Shard(0)),
}
INPUTS = ("hidden", "weight", "bias")


@dataclass(frozen=True)
class Case:
    """One loss, on so many ranks."""

    ranks: int = 2
    vocabulary: int = 321
    dtype: torch.dtype = torch.float32
    bias: bool = True
    ignored: str = "some"
    chunk_rows: int = 0
    frozen: tuple[str, ...] = ()


CASES = {
    "two ranks": Case(),
    "three ranks": Case(ranks=3, vocabulary=320),
    # One row, one row, none.
    "a rank without rows": Case(ranks=3, vocabulary=2),
    "a rank without rows, no bias, chunks": Case(ranks=3, vocabulary=2, bias=False, chunk_rows=7),
    "no bias": Case(bias=False),
    "chunks": Case(ranks=3, chunk_rows=7),
    "chunks of many blocks": Case(chunk_rows=290),
    "one row at a time": Case(chunk_rows=1),
    "all scored": Case(ignored="none"),
    "none scored": Case(ignored="all"),
    "bfloat16": Case(ranks=3, dtype=torch.bfloat16, chunk_rows=50),
    "only hidden": Case(frozen=("weight", "bias")),
    "only weight": Case(frozen=("hidden", "bias")),
    "only bias": Case(frozen=("hidden", "weight")),
}


def problem(case: Case) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, case.vocabulary, (2, ROWS // 2), generator=generator)
    if case.ignored != "none":
        labels[:, :: 1 if case.ignored == "all" else 3] = -100
    tensors: dict[str, Any] = {
        "hidden": torch.randn(2, ROWS // 2, WIDTH, generator=generator).to(case.dtype),
        "weight": torch.randn(case.vocabulary, WIDTH, generator=generator).to(case.dtype),
        "bias": torch.randn(case.vocabulary, generator=generator).to(case.dtype) if case.bias else None,
    }
    for name, tensor in tensors.items():
        if tensor is not None:
            tensor.requires_grad_(name not in case.frozen)
    return {**tensors, "labels": labels}


def plain(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor:
    logits = F.linear(hidden, weight, bias).flatten(0, -2).float()
    return F.cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum")


def gradients(tensors: dict[str, Any]) -> dict[str, torch.Tensor | None]:
    return {name: tensors[name].grad if tensors[name] is not None else None for name in INPUTS}


def own_share(tensors: dict[str, Any], rank: int, group: dist.ProcessGroup) -> tuple[dict[str, Any], Vocabulary]:
    """What this rank holds of the problem."""
    size = len(tensors["weight"])
    share = -(-size // group.size())
    rows = slice(min(rank * share, size), (rank + 1) * share)
    shared = {name: tensors[name] for name in ("weight", "bias") if tensors[name] is not None}
    held = {name: tensor.detach()[rows].clone().requires_grad_(tensor.requires_grad) for name, tensor in shared.items()}
    return {**tensors, **held}, Vocabulary(start=rows.start, size=size, group=group)


class Collectives:
    """Counts the reductions within a ``with``."""

    def __enter__(self) -> "Collectives":
        self.count, self.plain = 0, dist.all_reduce
        dist.all_reduce = self
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return self.plain(*args, **kwargs)

    def __exit__(self, *error: object) -> None:
        dist.all_reduce = self.plain


def run_case(case: Case, rank: int, group: dist.ProcessGroup) -> dict[str, Any]:
    given, vocabulary = own_share(problem(case), rank, group)
    with Collectives() as collectives:
        loss = linear_cross_entropy_sum(**given, chunk_rows=case.chunk_rows, vocabulary=vocabulary)
    (loss / 7).backward()
    with torch.no_grad(), Collectives() as without_gradients:
        silent = linear_cross_entropy_sum(**given, chunk_rows=case.chunk_rows, vocabulary=vocabulary)
    assert not silent.requires_grad
    return {
        "loss": loss.detach(),
        "silent": silent,
        "gradients": gradients(given),
        "collectives": (collectives.count, without_gradients.count),
    }


def run_where_shares_disagree_on_chunks(rank: int, group: dist.ProcessGroup) -> dict[str, Any]:
    """161 rows would take 4 positions at a time, 160 rows 5."""
    given, vocabulary = own_share(problem(Case()), rank, group)
    before, losses.CHUNK_ELEMENTS = losses.CHUNK_ELEMENTS, 800
    loss = linear_cross_entropy_sum(**given, vocabulary=vocabulary)
    losses.CHUNK_ELEMENTS = before
    return {"loss": loss.detach()}


def run_unknown_label(rank: int, group: dist.ProcessGroup) -> dict[str, Any]:
    given, vocabulary = own_share(problem(Case()), rank, group)
    given["labels"][0, 1] = 321
    with pytest.raises(RuntimeError, match="outside the vocabulary"):
        linear_cross_entropy_sum(**given, vocabulary=vocabulary)
    return {}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 320, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, use_cache=False))
    model.lm_head = nn.Linear(24, 320)
    return model


def batch() -> tuple[dict[str, Any], torch.Tensor]:
    ids = torch.randint(0, 320, (2, 10), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids}, ids.roll(-1, 1).masked_fill(torch.arange(10) % 4 == 3, -100)


def run_head(head: str, sharded: bool) -> dict[str, Any]:
    """A model with its head on a mesh, as transformers puts it there, and FSDP on top if ``sharded``."""
    model, (inputs, labels) = llama(), batch()
    mesh = DeviceMesh("cpu", torch.arange(RANKS).unsqueeze(0), mesh_dim_names=("dp", "tp"))
    style, placement = HEADS[head]
    if style:
        apply_tensor_parallelism(model, mesh["tp"], dict.fromkeys(("lm_head", "lm_head.weight", "lm_head.bias"), style))
    else:
        model.lm_head.weight = nn.Parameter(distribute_tensor(model.lm_head.weight.detach(), mesh["tp"], [placement]))
    assert isinstance(model.lm_head.weight, DTensor) and model.lm_head.weight.placements == (placement,)
    if sharded:
        fully_shard(model.lm_head, mesh=mesh["dp"])
    before = vars(model.lm_head).get("forward")
    loss = loss_in_head(model, inputs, labels)
    loss.backward()
    assert vars(model.lm_head).get("forward") is before and (before is not None) == bool(style)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    whole = {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in found.items()}
    return {"loss": loss.detach(), "gradients": whole}


def serve(rank: int, folder: str) -> None:
    """A process of the group: works through everything and leaves what it found in ``folder``."""
    torch.set_num_threads(1)
    store = FileStore(f"{folder}/store", RANKS)
    # Ranks that wait for each other in different places are to fail, not to hang.
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    groups: dict[int, Any] = {count: dist.new_group(list(range(count))) for count in (2, RANKS)}
    answers: dict[str, Any] = {}
    for name, case in CASES.items():
        if rank < case.ranks:
            answers[name] = run_case(case, rank, groups[case.ranks])
    if rank < 2:
        answers["disagreeing"] = run_where_shares_disagree_on_chunks(rank, groups[2])
        answers["unknown label"] = run_unknown_label(rank, groups[2])
    for head in HEADS:
        for sharded in (False, True):
            answers[f"{head} {sharded}"] = run_head(head, sharded)
    torch.save(answers, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found, by name of the case."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    spawn(serve, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(RANKS)]


def of(answers: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [found[name] for found in answers if name in found]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.dtype == torch.float32])
def test_shared_rows_give_the_loss_and_gradients_of_the_whole_weight(name: str, answers: list) -> None:
    case, found = CASES[name], of(answers, name)
    expected = problem(case)
    loss = plain(**expected)
    (loss / 7).backward()
    assert len(found) == case.ranks
    for each in found:
        assert each["loss"] == found[0]["loss"] == each["silent"]
        torch.testing.assert_close(each["loss"], loss.detach())
    for tensor, gradient in gradients(expected).items():
        theirs = [each["gradients"][tensor] for each in found]
        if gradient is None:
            assert theirs == [None] * case.ranks
        elif tensor == "hidden":
            for mine in theirs:
                torch.testing.assert_close(mine, gradient)
        else:
            torch.testing.assert_close(torch.cat(theirs), gradient)


def test_bfloat16_is_as_close_to_float32_as_the_plain_version(answers: list) -> None:
    case, found = CASES["bfloat16"], of(answers, "bfloat16")
    rounded = problem(case)
    exact = {name: tensor.detach().float() if name != "labels" else tensor for name, tensor in rounded.items()}
    for name in INPUTS:
        exact[name].requires_grad_()
    (plain(**rounded) / 7).backward()
    loss = plain(**exact)
    (loss / 7).backward()
    for name in INPUTS:
        theirs = [each["gradients"][name] for each in found]
        mine = theirs[0] if name == "hidden" else torch.cat(theirs)
        assert mine.dtype == torch.bfloat16
        assert name != "hidden" or all(torch.equal(mine, other) for other in theirs)
        best = exact[name].grad
        allowed = 1.5 * (rounded[name].grad.float() - best).norm() + 1e-3 * best.norm()
        assert (mine.float() - best).norm() <= allowed
    assert found[0]["loss"].dtype == torch.float32
    torch.testing.assert_close(found[0]["loss"], loss.detach(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_ranks_meet_twice_a_chunk_and_once_for_the_gradient(name: str, answers: list) -> None:
    case = CASES[name]
    chunks = -(-ROWS // (case.chunk_rows or ROWS))
    expected = (2 * chunks + ("hidden" not in case.frozen), 2 * chunks)
    assert all(each["collectives"] == expected for each in of(answers, name))


def test_ranks_of_unequal_shares_agree_on_the_chunks(answers: list) -> None:
    loss = plain(**problem(Case()))
    for each in of(answers, "disagreeing"):
        torch.testing.assert_close(each["loss"], loss.detach())


def test_a_label_outside_the_vocabulary_is_an_error_on_every_rank(answers: list) -> None:
    assert len(of(answers, "unknown label")) == 2


@pytest.mark.parametrize("sharded", [False, True], ids=["alone", "under FSDP"])
@pytest.mark.parametrize("head", HEADS)
def test_a_head_on_a_mesh_gives_the_loss_and_gradients_of_the_plain_model(
    head: str, sharded: bool, answers: list
) -> None:
    model, (inputs, labels) = llama(), batch()
    loss = cross_entropy_sum(model(**inputs).logits, labels)
    loss.backward()
    for each in of(answers, f"{head} {sharded}"):
        torch.testing.assert_close(each["loss"], loss.detach())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(each["gradients"][name], parameter.grad, msg=name)
