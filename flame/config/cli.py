"""``flame config``: what a job file may say.

flame config list                     every key with its default
flame config explain training.steps   one key or section: meaning, type, range, default, other names
"""

from flame.config.explaining import explain, list_keys
from flame.errors import ConfigError, closest

_ACTIONS = ("explain", "list")


def main(argv: list[str]) -> int:
    """Runs ``flame config``.

    Args:
        argv: The words after ``flame config``.

    Returns:
        The exit code.

    Raises:
        ConfigError: There is no such action or key.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print((__doc__ or "").strip())
        return 0
    action, *keys = argv
    if action not in _ACTIONS:
        raise ConfigError(f"Unknown action '{action}': use list or explain KEY.{closest(action, _ACTIONS)}")
    if action == "list":
        print(list_keys())
        return 0
    if not keys:
        raise ConfigError("Which key? Write: flame config explain KEY")
    print("\n\n".join(explain(key) for key in keys))
    return 0
