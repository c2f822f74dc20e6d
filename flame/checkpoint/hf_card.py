"""The model card (``README.md``) of an exported HuggingFace folder: a stub with what the run knows about itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def model_card(folder: Path, step: int, config: Mapping[str, Any], parameters: int, card: Mapping[str, Any]) -> str:
    """Returns the text of a model card.

    Args:
        folder: The folder the card goes to.
        step: Training step of the weights; -1 if it is not known.
        config: The model's ``config.json``.
        parameters: Number of values in the weights.
        card: Name -> value, shown in this order after the facts above; a list is joined by commas.

    Returns:
        Markdown with the header that the hub reads.
    """
    facts = {"model_type": config.get("model_type", "unknown"), "parameters": f"{parameters:,}"}
    facts |= {"step": step} if step >= 0 else {}
    facts |= card
    architecture = (config.get("architectures") or ["AutoModelForCausalLM"])[0]
    auto_class = "AutoModelForCausalLM" if architecture.endswith("ForCausalLM") else "AutoModel"
    trust = ", trust_remote_code=True" if config.get("auto_map") else ""
    lines = [
        "---",
        "library_name: transformers",
        "tags:",
        "- flame",
        "---",
        "",
        f"# {folder.parent.parent.name or config.get('model_type', 'model')}",
        "",
        "Trained with flame.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {_text(value)} |" for name, value in facts.items()),
        "",
        "```python",
        f"from transformers import {auto_class}, AutoTokenizer",
        "",
        f'model = {auto_class}.from_pretrained("path/to/this/folder"{trust})',
        f'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder"{trust})',
        "```",
        "",
    ]
    return "\n".join(lines)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
