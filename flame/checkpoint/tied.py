"""Which parameters of a model are one tensor under two names (an output head that is the embedding)."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

WRAPPER_PREFIXES = ("_orig_mod.", "_checkpoint_wrapped_module.")


def tied_names(model_parts: Iterable[nn.Module]) -> dict[str, str]:
    """Returns name -> name of the parameter it shares storage with.

    What transformers declares counts where pipeline stages separate the two; within one part the parameters
    themselves decide, so a pair that is declared but was never tied is kept as two.

    Args:
        model_parts: The model, or its pipeline stages.
    """
    tied: dict[str, str] = {}
    for part in model_parts:
        names = {_plain(name): id(p) for name, p in part.named_parameters(remove_duplicate=False)}
        declared = getattr(part, "all_tied_weights_keys", None) or {}
        tied |= {
            name: other
            for name, other in declared.items()
            if not {name, other} <= names.keys() or names[name] == names[other]
        }
        first: dict[int, str] = {}
        for name, identity in names.items():
            original = first.setdefault(identity, name)
            if original != name and name not in tied and tied.get(original) != name:
                tied[name] = original
    return tied


def _plain(name: str) -> str:
    for prefix in WRAPPER_PREFIXES:
        name = name.replace(prefix, "")
    return name


def resolve_tied(state: Mapping[str, Tensor], tied: Mapping[str, str], stored: Iterable[str]) -> dict[str, Tensor]:
    """Renames tensors that are stored only under the name of the one they share storage with.

    Args:
        state: The model's tensors by name.
        tied: Name -> the name of the tensor it shares storage with.
        stored: The names that exist where the model is to be read from.

    Returns:
        Stored name -> tensor to fill. Of two tensors with one stored name the first stays; they are one.
    """
    stored = set(stored)
    resolved: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stored_name = tied.get(name, name) if name not in stored else name
        resolved.setdefault(stored_name, tensor)
    return resolved
