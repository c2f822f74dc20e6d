"""Adding up what the tasks noted, into the figures of the report."""

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flame.data.prepare.job import STEPS, PrepareJob
from flame.data.prepare.reading.plan import Plan

_STEPS = ("read", *STEPS)
_PAIRS = 5
_WRITTEN_EXTRAS = ("sources", "lengths", "left_over")


def collect(job: PrepareJob, work: Path, plan: Plan) -> dict[str, Any]:
    """Returns the figures of a preparation, as plain values.

    Args:
        job: The job.
        work: Folder of its state.
        plan: The files it reads.
    """
    notes = work / "notes"
    steps = [_step(name, _load(notes / name), job.report.examples) for name in _STEPS if (notes / name).is_dir()]
    _fill_in_tokens(steps)
    read = next((step for step in steps if step["name"] == "read"), None)
    normalised = next((step for step in steps if step["name"] == "normalise"), read)
    written = _summed(_load(notes / "written"))
    return {
        "job": asdict(job),
        "inputs": {"files": len(plan.files), "bytes": plan.bytes, "tasks": plan.tasks},
        "read": read["kept"] if read else {"documents": 0, "bytes": 0},
        "text": normalised["kept"] if normalised else {"documents": 0, "bytes": 0},
        "steps": steps,
        "languages": _languages(steps),
        "written": {name: amount for name, amount in written.items() if name not in _WRITTEN_EXTRAS},
        "written_by_source": written.get("sources", {}),
        "left_over_tokens": written.get("left_over", {}).get("tokens", 0),
        "lengths": dict(sorted(written.get("lengths", {}).items(), key=lambda entry: int(entry[0]))),
        "clusters": {
            kind: _clusters(notes, kind) for kind in ("exact", "minhash") if (notes / f"{kind}_clusters").is_dir()
        },
        "contaminated": _summed(_load(notes / "contamination")).get("items", {}),
        "seconds": _seconds(notes / "seconds"),
    }


def _seconds(folder: Path) -> dict[str, float]:
    """Seconds by stage, in the order in which the stages ended."""
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return {path.stem: json.loads(path.read_text()) for path in paths}


def _load(folder: Path) -> list[Any]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("[0-9]*.json"))]


def _step(name: str, ranks: list[dict[str, Any]], most_examples: int) -> dict[str, Any]:
    kept, reasons = [0] * 4, defaultdict(lambda: [0] * 4)
    sources: dict[str, dict[str, list[int]]] = defaultdict(lambda: {"kept": [0] * 4, "dropped": [0] * 4})
    examples: dict[str, list[Any]] = defaultdict(list)
    for rank in ranks:
        for source, counts in rank["kept"].items():
            kept = _added(kept, counts)
            sources[source]["kept"] = _added(sources[source]["kept"], counts)
        for reason, by_source in rank["dropped"].items():
            for source, counts in by_source.items():
                reasons[reason] = _added(reasons[reason], counts)
                sources[source]["dropped"] = _added(sources[source]["dropped"], counts)
            examples[reason] += rank["examples"].get(reason, [])[: most_examples - len(examples[reason])]
    dropped = [0] * 4
    for counts in reasons.values():
        dropped = _added(dropped, counts)
    ordered = sorted(reasons.items(), key=lambda entry: (-entry[1][0], entry[0]))
    return {
        "name": name,
        "kept": _amount(kept),
        "dropped": _amount(dropped),
        "reasons": [{"reason": reason, **_amount(counts), "examples": examples[reason]} for reason, counts in ordered],
        "sources": {source: {how: _amount(counts) for how, counts in both.items()} for source, both in sources.items()},
        "notes": _summed([rank["extra"] for rank in ranks]),
        "seconds": sum(rank["seconds"] for rank in ranks),
    }


def _added(left: list[int], right: list[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _amount(counts: list[int]) -> dict[str, Any]:
    documents, size, sampled_bytes, sampled_tokens = counts
    return {"documents": documents, "bytes": size, "sampled": [sampled_bytes, sampled_tokens]}


def _fill_in_tokens(steps: list[dict[str, Any]]) -> None:
    """Estimates tokens from the sampled documents: those dropped from their own sample, those kept by subtraction."""
    first = next((step for step in steps if step["name"] == "normalise"), None)
    ratio = _ratio(first["kept"]["sampled"], None) if first else None
    left: float | None = None
    for step in steps:
        amounts = [step["dropped"], *step["reasons"], *(both["dropped"] for both in step["sources"].values())]
        kept = [step["kept"], *(both["kept"] for both in step["sources"].values())]
        for amount in amounts:
            per_byte = _ratio(amount["sampled"], ratio)
            amount["tokens"] = None if per_byte is None else round(amount["bytes"] * per_byte)
        for amount in kept:
            per_byte = _ratio(amount["sampled"], ratio)
            amount["tokens"] = None if per_byte is None else round(amount["bytes"] * per_byte)
        if left is not None and step["dropped"]["tokens"] is not None:
            step["kept"]["tokens"] = left = max(0, left - step["dropped"]["tokens"])
        elif step is first:
            left = step["kept"]["tokens"]
        for amount in (*amounts, *kept):
            del amount["sampled"]


def _ratio(sampled: list[int], otherwise: float | None) -> float | None:
    size, tokens = sampled
    return tokens / size if size else otherwise


def _summed(values: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds up nested tables of numbers, key by key."""
    total: dict[str, Any] = {}
    for value in values:
        for key, part in value.items():
            total[key] = _summed([total.get(key, {}), part]) if isinstance(part, dict) else total.get(key, 0) + part
    return total


def _languages(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    step = next((step for step in steps if step["name"] == "language"), None)
    if step is None:
        return []
    documents, sizes = step["notes"].pop("languages", {}), step["notes"].pop("language bytes", {})
    ordered = sorted(documents, key=lambda code: (-documents[code], code))
    return [{"language": code, "documents": documents[code], "bytes": sizes.get(code, 0)} for code in ordered]


def _clusters(notes: Path, kind: str) -> dict[str, Any]:
    """Clusters by size in steps of powers of two (the key is the smallest of a step), and pairs to show."""
    sizes = _summed(_load(notes / f"{kind}_clusters")).get("sizes", {})
    binned: dict[int, int] = defaultdict(int)
    for cluster, number in sizes.items():
        binned[1 << (int(cluster).bit_length() - 1)] += number
    pairs = [pair for rank in _load(notes / f"{kind}_pairs") for pair in rank]
    return {"sizes": {str(start): binned[start] for start in sorted(binned)}, "pairs": pairs[:_PAIRS]}
