"""Speed of flame's parallel layouts against the same model under plain torch and under torchtitan.

    python tests/benchmarks/parallel.py [--rounds 5] [--steps 4] [--only fsdp tp pp device]

Each comparison is a pair of processes on the CPU (gloo, one thread each, float32) in which flame and its peer take
turns, step by step, on equal batches, so that whatever else the machine does hits both. A round is the median step of
each; printed are tokens/s, and the median over rounds of flame's ratio to the peer, lowest and highest in brackets.
Two processes that wait for each other need two free cores: on a busy machine take more rounds.

fsdp     flame's trainer against a hand loop: transformers' model, ``fully_shard`` per layer, cross entropy of the
         logits, clipping, AdamW. Goal: 0.9.
tp       flame's trainer against torchtitan's trainer with torchtitan's own Llama and plan (sequence parallel, loss
         parallel). Goal: 0.9.
pp       the same under 1F1B with micro-batches of one row. Goal: 0.9.
device   what ``fully_shard`` as flame applies it costs on a single GPU, against the same arithmetic by hand (a bfloat16
         copy of float32 weights, refreshed once per step). Goal: 2%. Left out where there is no GPU, unless asked for.

The model is a Llama (6 layers, width 384, 6 heads, vocabulary 8,192, untied; 340M parameters on a GPU). The data path
is not part of it: see ``overhead.py`` and ``data.py``.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CPU_SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6}
GPU_SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16}
TOKENS = 8192  # of the tokenizer; labels must be among them
PEERS = {"fsdp": "hand loop", "tp": "torchtitan", "pp": "torchtitan", "device": "by hand"}
GOALS = {"fsdp": 0.9, "tp": 0.9, "pp": 0.9, "device": 0.98}
DEGREES = {"fsdp": "data_parallel_shard", "tp": "tensor_parallel", "pp": "pipeline_parallel"}
ADAMW: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "fused": True}

Step = Callable[[], None]


def model_config(on_gpu: bool, vocabulary: int) -> dict[str, Any]:
    """The ``config.json`` of the model."""
    shape = GPU_SHAPE if on_gpu else CPU_SHAPE
    heads = {"num_key_value_heads": shape["num_attention_heads"], "tie_word_embeddings": False}
    return {"model_type": "llama", "vocab_size": vocabulary, "max_position_embeddings": 2048, **shape, **heads}


def batches(device: Any, options: argparse.Namespace, rank: int, key: str) -> Iterator[Any]:
    """Endless random batches as a trainer's loader gives them; equal ``rank`` gives equal ones."""
    import torch

    generator = torch.Generator().manual_seed(rank)
    shape = (options.batch, options.length + 1)
    drawn = [torch.randint(0, TOKENS, shape, generator=generator).to(device) for _ in range(8)]
    while True:
        for ids in drawn:
            yield {key: ids[:, :-1].contiguous()}, ids[:, 1:].contiguous()


def flame_words(folder: Path, options: argparse.Namespace) -> list[str]:
    """The command line of flame's side."""
    text = folder / "text.txt"  # flame opens its data before it trains; the batches come from elsewhere
    words = {
        "job.dump_folder": folder / "run",
        "model.config": folder / "config.json",
        "model.tokenizer_path": "builtin:python-stdlib-8k",
        "data.sources": text,
        "training.seq_len": options.length,
        "training.local_batch_size": options.batch,
        "training.steps": 10_000,
        "training.mixed_precision_param": "bfloat16" if options.child == "device" else "float32",
        "training.dataloader.num_workers": 0,
        "optimizer.lr": ADAMW["lr"],
        "metrics.log_freq": 10,
        "metrics.enable_tensorboard": "false",
        "checkpoint.enable": "false",
    }
    if options.child in DEGREES:
        words[f"parallelism.{DEGREES[options.child]}_degree"] = 2
        words["parallelism.pipeline_parallel_schedule"] = "1F1B"
        words["parallelism.pipeline_parallel_microbatch_size"] = 1
    return [f"--{key}={value}" for key, value in words.items()]


def trainer_step(trainer: Any, data: Iterator[Any]) -> Step:
    """One turn of torchtitan's loop, which flame's trainer shares."""
    iterator = trainer.batch_generator(data)

    def step() -> None:
        trainer.step += 1
        trainer.gc_handler.run(trainer.step)
        trainer.train_step(iterator)

    return step


def flame_side(folder: Path, options: argparse.Namespace) -> tuple[Step, int]:
    """A step of flame's trainer, and the number of the model's parameters."""
    import torch

    from flame.train import prepare
    from flame.trainer import Trainer

    trainer = Trainer(prepare(flame_words(folder, options), world_size=2))
    data_rank = options.rank if options.child == "fsdp" else 0
    data = batches(torch.device("cpu"), options, data_rank, "input_ids")
    return trainer_step(trainer, data), trainer.model_args.parameters  # type: ignore[attr-defined]


def hand_side(folder: Path, options: argparse.Namespace) -> tuple[Step, int]:
    """A step of the smallest sharded loop a person would write, and the number of the model's parameters."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "config.json"), dtype=torch.float32)
    model.config.use_cache = False
    mesh = init_device_mesh("cpu", (2,))
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no mean: the sum is divided afterwards
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    data = batches(torch.device("cpu"), options, options.rank, "input_ids")
    return plain_step(model, optimizer, data), sum(parameter.numel() for parameter in model.parameters())


def plain_step(model: Any, optimizer: Any, data: Iterator[Any]) -> Step:
    """Forward, backward, clipping and update, with the loss computed from all logits."""
    import torch

    def step() -> None:
        inputs, labels = next(data)
        logits = model(**inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def titan_side(folder: Path, options: argparse.Namespace) -> tuple[Step, int]:
    """A step of torchtitan's trainer on its own Llama of the same shape, and the number of its parameters."""
    import flame.compat  # noqa: F401  torchtitan binds its device when it is imported

    # isort: split
    from dataclasses import replace

    import torch
    from torchtitan.config import JobConfig
    from torchtitan.models.llama3 import TransformerModelArgs, get_train_spec
    from torchtitan.protocols.train_spec import register_train_spec
    from torchtitan.train import Trainer

    shape = json.loads((folder / "config.json").read_text())
    args = TransformerModelArgs(
        dim=shape["hidden_size"],
        n_layers=shape["num_hidden_layers"],
        n_heads=shape["num_attention_heads"],
        vocab_size=shape["vocab_size"],
    )
    nothing = {"build_tokenizer_fn": None, "build_dataloader_fn": None, "state_dict_adapter": None}
    register_train_spec("peer", replace(get_train_spec(), model_args={"same": args}, **nothing))  # type: ignore[arg-type]
    config = JobConfig()
    config.job.dump_folder = str(folder / "peer")
    config.model.name, config.model.flavor = "peer", "same"
    config.optimizer.lr = ADAMW["lr"]
    config.training.seq_len, config.training.local_batch_size = options.length, options.batch
    config.training.mixed_precision_param = "float32"
    config.activation_checkpoint.mode = "none"
    layout = config.parallelism
    setattr(layout, f"{DEGREES[options.child]}_degree", 2)
    layout.pipeline_parallel_schedule, layout.pipeline_parallel_microbatch_size = "1F1B", 1
    trainer = Trainer(config)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in trainer.train_spec.model_cls(args).parameters())  # type: ignore[arg-type]
    return trainer_step(trainer, batches(torch.device("cpu"), options, 0, "input")), count


def sharded_side(folder: Path, options: argparse.Namespace) -> tuple[Step, int]:
    """A step of a hand loop over a model sharded as flame does it on one device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from flame import compat
    from flame.parallel.layout import layout_of
    from flame.parallel.sharding import shard
    from flame.train import prepare

    config = prepare(flame_words(folder, options), world_size=1).config
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "config.json"), dtype=torch.float32)
    model.config.use_cache = False
    model.to(compat.DEVICE_TYPE)
    shard(model, model.model.layers, [], layout_of(config, 1), config)
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    data = batches(torch.device(compat.DEVICE_TYPE), options, 0, "input_ids")
    return plain_step(model, optimizer, data), sum(parameter.numel() for parameter in model.parameters())


def unsharded_side(folder: Path, options: argparse.Namespace) -> tuple[Step, int]:
    """The same arithmetic without ``fully_shard``: passes in bfloat16, weights, clipping and update in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from flame import compat

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "config.json"), dtype=torch.float32)
    model.config.use_cache = False
    model.to(compat.DEVICE_TYPE)
    low = list(model.parameters())
    weights = [torch.nn.Parameter(parameter.detach().clone()) for parameter in low]
    for parameter in low:
        parameter.data = parameter.data.bfloat16()  # rotary tables stay float32, as under fully_shard
    optimizer = torch.optim.AdamW(weights, **ADAMW)
    data = batches(torch.device(compat.DEVICE_TYPE), options, 0, "input_ids")

    def step() -> None:
        inputs, labels = next(data)
        torch._foreach_copy_([parameter.detach() for parameter in low], [weight.detach() for weight in weights])  # pyright: ignore[reportPrivateImportUsage]
        logits = model(**inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        loss.backward()
        for parameter, weight in zip(low, weights, strict=True):
            assert parameter.grad is not None
            weight.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step, sum(weight.numel() for weight in weights)


def child(folder: Path, options: argparse.Namespace) -> None:
    """One process of a comparison; rank 0 prints the parameters of both sides, then each round's seconds per step."""
    from flame import compat  # before torch: it sets how memory is taken

    # isort: split
    import torch
    import torch.distributed as dist

    on_gpu = compat.DEVICE_TYPE != "cpu"
    if not on_gpu:
        torch.set_num_threads(1)
    compat.DEVICE_MODULE.set_device(0)
    dist.init_process_group("nccl" if compat.DEVICE_TYPE == "cuda" else None if on_gpu else "gloo")
    # torchtitan first: flame puts its checkpoint manager into torchtitan's trainer.
    peer = {"fsdp": hand_side, "device": unsharded_side}.get(options.child, titan_side)
    steps: dict[str, Step] = {}
    counts: dict[str, int] = {}
    sides = {"peer": peer, "flame": sharded_side if options.child == "device" else flame_side}
    for name, side in sides.items():
        steps[name], counts[name] = side(folder, options)
    tell({name: float(count) for name, count in counts.items()})

    def seconds(name: str) -> float:
        dist.barrier()
        compat.DEVICE_MODULE.synchronize()
        start = time.perf_counter()
        steps[name]()
        compat.DEVICE_MODULE.synchronize()
        dist.barrier()
        return time.perf_counter() - start

    order = list(steps)
    for _ in range(2):  # the first steps allocate, connect and find out shapes
        for name in order:
            seconds(name)
    for _ in range(options.rounds):
        times: dict[str, list[float]] = {name: [] for name in order}
        for _ in range(options.steps):
            for name in order:
                times[name].append(seconds(name))
            order.reverse()
        tell({name: statistics.median(values) for name, values in times.items()})
    dist.destroy_process_group()


def tell(figures: dict[str, float]) -> None:
    """Hands figures to the parent, which reads lines that begin with a mark and drops all others."""
    if os.environ["RANK"] == "0":
        print("\n@" + json.dumps(figures), flush=True)


def compare(kind: str, options: argparse.Namespace) -> list[float]:
    """Runs one comparison and prints it; returns flame's ratio to the peer, by round."""
    processes = 1 if kind == "device" else 2
    rows, length = options.batch, options.length
    tokens = rows * length * (2 if kind == "fsdp" else 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = model_config(options.gpu and kind == "device", options.vocabulary)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "text.txt").write_text("Nothing of this is read.\n" * 100)
        figures = [json.loads(line[1:]) for line in run(kind, processes, folder, options) if line.startswith("@")]
    counts, rounds = figures[0], figures[1:]
    assert counts["flame"] == counts["peer"], counts
    label = {"fsdp": "FSDP 2", "tp": "TP 2", "pp": "PP 2", "device": "fully_shard on one device"}[kind]
    print(f"{label}: {int(counts['flame']):,} parameters in both, {rows} x {length} tokens{' each' * (kind == 'fsdp')}")
    for side, title in (("flame", "flame"), ("peer", PEERS[kind])):
        speeds = [tokens / seconds[side] for seconds in rounds]
        low, high = min(speeds), max(speeds)
        print(f"  {title:<11}{statistics.median(speeds):9,.0f} tokens/s  [{low:,.0f} .. {high:,.0f}]")
    ratios = [seconds["peer"] / seconds["flame"] for seconds in rounds]
    goal = f"goal: at least {GOALS[kind]}" if kind != "device" or options.gpu else "the goal is for a GPU"
    bounds = f"[{min(ratios):.3f} .. {max(ratios):.3f}]"
    print(f"  flame / {PEERS[kind]}: {statistics.median(ratios):.3f}  {bounds}  ({goal})\n", flush=True)
    return ratios


def run(kind: str, processes: int, folder: Path, options: argparse.Namespace) -> list[str]:
    """Starts the processes of a comparison; returns what rank 0 printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
    if kind != "device":
        environment.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, __file__, "--child", kind, "--folder", str(folder)]
    for key in ("rounds", "steps", "batch", "length"):
        command += [f"--{key}", str(getattr(options, key))]
    logs = [folder / f"rank-{rank}.log" for rank in range(processes)]
    ranks = [
        subprocess.Popen(
            [*command, "--rank", str(rank)],
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            env={**environment, "RANK": str(rank), "WORLD_SIZE": str(processes)},
        )
        for rank, log in enumerate(logs)
    ]
    deadline = time.monotonic() + options.timeout
    try:
        # A rank that fails leaves the others waiting for it.
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
    if any(rank.wait() for rank in ranks):
        ends = "\n".join(f"{log.name}:\n{log.read_text()[-3000:]}" for log in logs)
        sys.exit(f"{kind}: a process failed or took more than {options.timeout} s\n{ends}")
    return logs[0].read_text().splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of each side in a round")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=[])
    parser.add_argument("--batch", type=int, default=0, help="rows of a process; 4, on a GPU 8")
    parser.add_argument("--length", type=int, default=0, help="tokens of a row; 256, on a GPU 2048")
    parser.add_argument("--vocabulary", type=int, default=TOKENS)
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one comparison")
    parser.add_argument("--child", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.folder, options)
        return

    import torch

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the processes of a comparison end too
    options.gpu = torch.accelerator.is_available()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}\n")
    batch, length = options.batch, options.length
    for kind in options.only or PEERS:
        if kind == "device" and not options.gpu and not options.only:
            print("fully_shard on one GPU: not measured, there is no GPU here")
            continue
        large = kind == "device" and options.gpu
        options.batch, options.length = batch or (8 if large else 4), length or (2048 if large else 256)
        compare(kind, options)


if __name__ == "__main__":
    main()
