"""The report of a preparation, for people: Markdown."""

from typing import Any

_EXAMPLE = 300  # characters
_MOST_LANGUAGES = 20
_BAR = 40


def markdown(found: dict[str, Any], has_picture: bool) -> str:
    """Writes the report.

    Args:
        found: The figures, of ``collect``.
        has_picture: Whether there is a ``report.png`` to show.
    """
    parts = [
        _summary(found),
        "![](report.png)" if has_picture else "",
        _funnel(found),
        _sources(found),
        _languages(found["languages"]),
        _lengths(found),
        _clusters(found["clusters"]),
        _contaminated(found["contaminated"]),
        _changes(found["steps"]),
        _seconds(found),
        _drops(found["steps"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def one_line(found: dict[str, Any]) -> str:
    """Says in a line what went in and what came out."""
    return f"{_of(found['read'])} read from {found['inputs']['files']:,} files -> {summary_of(found['written'])}"


def summary_of(written: dict[str, Any]) -> str:
    """Says what was written, split by split."""
    return "; ".join(f"{name}: {_of(amount)}" for name, amount in written.items())


def _summary(found: dict[str, Any]) -> str:
    lines = [f"# Preparation of {found['job']['output']['folder']}", one_line(found) + "."]
    text, out = found["text"]["documents"], sum(amount["documents"] for amount in found["written"].values())
    if text:
        lines.append(f"Of the documents with text, {100 * out / text:.1f}% are kept.")
    return "\n\n".join(lines)


def _funnel(found: dict[str, Any]) -> str:
    rows = []
    for step in found["steps"]:
        kept, dropped = step["kept"], step["dropped"]
        into = kept["documents"] + dropped["documents"]
        share = f"{100 * dropped['documents'] / into:.1f}%" if into else ""
        amounts = [count(kept["documents"]), size(kept["bytes"]), _tokens(kept)]
        rows.append(
            [step["name"], count(dropped["documents"]), share, size(dropped["bytes"]), _tokens(dropped), *amounts]
        )
    head = ["step", "dropped", "share", "dropped bytes", "dropped tokens", "kept", "kept bytes", "kept tokens"]
    text = "## What each step kept and dropped\n\n" + table(head, rows)
    is_counted = any(step["dropped"].get("tokens") is not None for step in found["steps"])
    if is_counted and found["job"]["report"]["tokens"] == "estimate":
        text += "\n\nTokens are estimated: one document in 16 is tokenized. Those written are counted."
    return text


def _sources(found: dict[str, Any]) -> str:
    read = next((step["sources"] for step in found["steps"] if step["name"] == "read"), {})
    rows = []
    for name in dict.fromkeys([*read, *found["written_by_source"]]):
        into = read.get(name, {}).get("kept", {"documents": 0, "bytes": 0})
        out = found["written_by_source"].get(name, {"documents": 0, "bytes": 0})
        kept = f"{100 * out['documents'] / into['documents']:.1f}%" if into["documents"] else ""
        amounts = [count(out["documents"]), kept, size(out["bytes"]), count(out.get("tokens") or 0)]
        rows.append([name, count(into["documents"]), size(into["bytes"]), *amounts])
    head = ["input", "read", "read bytes", "written", "share", "written bytes", "written tokens"]
    return "## Inputs\n\n" + table(head, rows) if rows else ""


def _languages(found: list[dict[str, Any]]) -> str:
    if not found:
        return ""
    total = sum(entry["documents"] for entry in found)
    rows = [
        [entry["language"], count(entry["documents"]), f"{100 * entry['documents'] / total:.1f}%", size(entry["bytes"])]
        for entry in found[:_MOST_LANGUAGES]
    ]
    rest = len(found) - _MOST_LANGUAGES
    more = f"\n\nand {rest} more." if rest > 0 else ""
    return "## Languages, before the filter\n\n" + table(["language", "documents", "share", "bytes"], rows) + more


def _lengths(found: dict[str, Any]) -> str:
    lengths = found["lengths"]
    if not lengths:
        return ""
    unit = "bytes" if found["job"]["output"]["format"] == "parquet" else "tokens"
    most = max(lengths.values())
    rows = [
        [_step(int(start)), count(number), f"`{'█' * max(1, round(_BAR * number / most))}`"]
        for start, number in lengths.items()
    ]
    return "## Lengths of the documents written\n\n" + table([unit, "documents", ""], rows, texts=(0, 2))


def _step(start: int) -> str:
    """The numbers of a step of powers of two."""
    return f"{start:,} to {2 * start - 1:,}" if start > 1 else str(start)


def _clusters(found: dict[str, Any]) -> str:
    parts = []
    titles = {"exact": "Equal documents", "minhash": "Near duplicates"}
    for kind, clusters in found.items():
        if not clusters["sizes"]:
            continue
        rows = [[_step(int(start)), count(number)] for start, number in clusters["sizes"].items()]
        parts.append(f"## {titles[kind]}\n\n" + table(["documents in a cluster", "clusters"], rows))
        for pair in clusters["pairs"]:
            parts += [f"kept: {_example(pair['kept'])}", f"dropped: {_example(pair['dropped'])}"]
    return "\n\n".join(parts)


def _contaminated(found: dict[str, int]) -> str:
    if not found:
        return ""
    ordered = sorted(found.items(), key=lambda entry: (-entry[1], entry[0]))[:_MOST_LANGUAGES]
    rows = [[_cell(item), count(number)] for item, number in ordered]
    return "## Evaluation texts found\n\n" + table(["text", "documents dropped"], rows)


def _changes(steps: list[dict[str, Any]]) -> str:
    rows = [
        [step["name"], what, count(number)]
        for step in steps
        for group in step["notes"].values()
        for what, number in sorted(group.items())
    ]
    return "## What was changed\n\n" + table(["step", "what", "times"], rows, texts=(0, 1)) if rows else ""


def _seconds(found: dict[str, Any]) -> str:
    stages = [[name, f"{seconds:,.1f}"] for name, seconds in found["seconds"].items()]
    # Duplicates are found by stages of their own: leaving them out takes no time worth telling.
    steps = [[step["name"], f"{step['seconds']:,.1f}"] for step in found["steps"] if step["seconds"]]
    parts = ["## Time", table(["stage", "seconds"], stages) if stages else ""]
    parts.append("Work of the steps, added up over all tasks:\n\n" + table(["step", "seconds"], steps))
    return "\n\n".join(part for part in parts if part)


def _drops(steps: list[dict[str, Any]]) -> str:
    parts = []
    for step in steps:
        for reason in step["reasons"]:
            parts.append(f"### {step['name']}: {reason['reason']}\n\n{_of(reason)}")
            parts += [_example(example) for example in reason["examples"]]
    return "## Examples of what was dropped\n\n" + "\n\n".join(parts) if parts else ""


def _example(example: dict[str, str]) -> str:
    text = example["text"][:_EXAMPLE]
    shown = "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)
    more = "..." if len(example["text"]) > _EXAMPLE else ""
    detail = f": {_cell(example['detail'])}" if example.get("detail") else ""
    body = "\n".join(f"    {line}" for line in (shown + more).splitlines() if line.strip())
    return f"`{example['id'].replace('`', '')}`{detail}" + (f"\n\n{body}" if body else "")


def table(head: list[str], rows: list[list[str]], texts: tuple[int, ...] = (0,)) -> str:
    """A table in Markdown; the columns ``texts`` begin at the left, the others are figures."""
    lines = [head, ["---" if place in texts else "---:" for place in range(len(head))], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def size(number: int) -> str:
    """A number of bytes for people."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def count(number: int) -> str:
    """A number with separators."""
    return f"{number:,}"


def _tokens(amount: dict[str, Any]) -> str:
    return "" if amount.get("tokens") is None else count(amount["tokens"])


def _of(amount: dict[str, Any]) -> str:
    documents = amount["documents"]
    tokens = f", {_tokens(amount)} tokens" if amount.get("tokens") else ""
    return f"{documents:,} document{'' if documents == 1 else 's'}, {size(amount['bytes'])}{tokens}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:200]
