"""A plan as text."""

from flame.plan.plan import RESERVE, Plan, usable
from flame.plan.rehearsal import RankPlan

_ROWS = ("parameters", "gradients", "optimizer", "buffers", "unsharded", "activations", "other", "peak")
_LABELS = {
    "optimizer": "optimizer state",
    "unsharded": "gathered parameters",
    "activations": "activations, at most",
    "other": "other",
    "peak": "peak",
}


def as_table(plan: Plan, memory: int | None) -> str:
    """The plan for people."""
    parts = [_summary(plan), "Memory of a rank", _columns(plan)]
    if traffic := _traffic(plan):
        parts += ["Sent by a rank in a step (calls, bytes)", traffic]
    if reason := next((rank.estimated for rank in plan.ranks if rank.estimated), ""):
        parts.append(f"The step cannot be run without devices ({reason}): all but shards is estimated by formula.")
    if memory is not None:
        parts.append(_verdict(plan, memory))
    return "\n\n".join(parts)


def size(count: int) -> str:
    """Bytes in a unit that leaves at most four digits before the point."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.2f} {units[0]}" if units[0] != "B" else f"{count} B"


def _summary(plan: Plan) -> str:
    degrees = " x ".join(f"{name} {degree}" for name, degree in plan.layout.items() if degree > 1) or "one device"
    flops = plan.flops_per_token * plan.tokens
    lines = {
        "cluster": f"{plan.nodes} x {plan.devices} = {plan.nodes * plan.devices} devices: {degrees}",
        "model": f"{plan.family}, {plan.parameters:,} parameters, computed in {plan.precision}",
        "step": f"{plan.rows:,} rows = {plan.tokens:,} tokens, in {plan.passes} x {plan.rows_at_once:,} rows",
        "work": f"{plan.flops_per_token / 1e9:,.2f} GFLOP per token, {flops / 1e15:,.2f} PFLOP per step, "
        f"{flops / plan.nodes / plan.devices / 1e12:,.2f} TFLOP of it on a device",
    }
    return "\n".join(f"{name:<9}{text}" for name, text in lines.items())


def _columns(plan: Plan) -> str:
    heads = [_head(rank, plan) for rank in plan.ranks]
    rows = [["", *heads]]
    for name in _ROWS:
        rows.append([_LABELS.get(name, name), *(size(getattr(rank, name)) for rank in plan.ranks)])
    return _aligned(rows)


def _head(rank: RankPlan, plan: Plan) -> str:
    if plan.layout["pp"] == 1:
        return f"rank {rank.rank}"
    return f"rank {rank.rank}, stage {'+'.join(map(str, rank.stages))}"


def _traffic(plan: Plan) -> str:
    kinds = sorted({kind for rank in plan.ranks for kind in rank.traffic}, key=lambda kind: (kind.mesh, kind))
    rows = []
    for kind in kinds:
        cells = [rank.traffic.get(kind, (0, 0)) for rank in plan.ranks]
        label = f"{kind.mesh}: {kind.operation}{f', {kind.phase}' * bool(kind.phase)}"
        rows.append([label, *(f"{calls:,} x  {size(sent)}" for calls, sent in cells)])
    return _aligned([["", *(_head(rank, plan) for rank in plan.ranks)], *rows]) if rows else ""


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = [
        "  "
        + "  ".join(
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _verdict(plan: Plan, memory: int) -> str:
    limit = usable(memory)
    kept = f"{size(memory)} less {RESERVE:.0%} for context, communication and fragmentation"
    if plan.peak <= limit:
        return f"FITS: {size(plan.peak)} of {size(limit)} ({kept})"
    worst = max(plan.ranks, key=lambda rank: rank.peak)
    return f"DOES NOT FIT: rank {worst.rank} needs {size(plan.peak)}, there is {size(limit)} ({kept})"
