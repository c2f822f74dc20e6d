"""A job's plan: figures of the whole run and of a rank of every pipeline stage."""

from dataclasses import asdict, dataclass
from typing import Any

from flame.parallel.layout import layout_of
from flame.plan.rehearsal import RankPlan, meta_model, rehearse
from flame.spec import Job, anatomy_of, make_train_spec

RESERVE = 0.08
"""Share of a device's memory kept for what no tensor holds: context, communication buffers, fragmentation."""

DEGREES = ("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep", "etp")


@dataclass(frozen=True)
class Plan:
    """What a job needs on a cluster."""

    nodes: int
    devices: int
    """Of a node."""
    layout: dict[str, int]
    """Degrees by torchtitan's names."""
    family: str
    precision: str
    parameters: int
    """Of the whole model; tied weights count once."""
    flops_per_token: int
    rows: int
    """Of an optimizer step."""
    tokens: int
    """Of an optimizer step."""
    passes: int
    """Forward passes of an optimizer step on a rank."""
    ranks: list[RankPlan]
    """The first rank of every pipeline stage; it holds the largest shards."""

    @property
    def rows_at_once(self) -> int:
        """Of all ranks together, in one forward pass."""
        return self.rows // self.passes

    @property
    def peak(self) -> int:
        """Bytes of the rank that needs most."""
        return max(rank.peak for rank in self.ranks)


def make_plan(job: Job, nodes: int, devices: int) -> Plan:
    """Plans a checked job for a cluster.

    Args:
        job: resolved for ``nodes * devices`` processes.
        nodes: number of nodes.
        devices: devices per node.

    Raises:
        ConfigError: the job cannot be laid out like that.
    """
    world, training = nodes * devices, job.config.training
    spec = make_train_spec(job)
    args: Any = spec.model_args[job.config.model.flavor]
    parameters, flops = args.get_nparams_and_flops(meta_model(job), training.seq_len)
    layout = layout_of(job.config, world)
    found = anatomy_of(job)
    # Pipeline ranks are the outermost dimension, and rank 0 of the others has the largest part of what does not divide.
    ranks = [rehearse(job, rank, world, found) for rank in range(0, world, world // layout.pp)]
    return Plan(
        nodes=nodes,
        devices=devices,
        layout={name: getattr(layout, name) for name in DEGREES},
        family=job.plugin.model_type,
        precision=training.mixed_precision_param,
        parameters=parameters,
        flops_per_token=flops,
        rows=training.global_batch_size,
        tokens=training.global_batch_size * training.seq_len,
        passes=training.global_batch_size // (training.local_batch_size * layout.dp_replicate * layout.dp_shard),
        ranks=ranks,
    )


def usable(memory: int) -> int:
    """What tensors may take of a device's memory."""
    return int(memory * (1 - RESERVE))


def as_json(plan: Plan, memory: int | None) -> dict[str, Any]:
    """The plan for programs; sizes in bytes, traffic as lists of objects."""
    ranks = []
    for rank in plan.ranks:
        traffic = [{**asdict(kind), "calls": calls, "sent": sent} for kind, (calls, sent) in rank.traffic.items()]
        ranks.append({**{name: value for name, value in vars(rank).items() if name != "traffic"}, "traffic": traffic})
    figures = {**vars(plan), "ranks": ranks, "flops": plan.flops_per_token * plan.tokens, "peak": plan.peak}
    if memory is not None:
        figures |= {"memory": memory, "usable": usable(memory), "fits": plan.peak <= usable(memory)}
    return figures
