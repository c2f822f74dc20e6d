"""Whether the HuggingFace hub can be reached, asked once and quickly: its client alone retries for most of a minute."""

import functools
import urllib.error
import urllib.request

from huggingface_hub import constants

_PATIENCE = 10.0  # seconds


@functools.cache
def hub_is_reachable() -> bool:
    """Asks the hub for a sign of life, through the proxies that the environment names."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, ValueError):
        return False
    return True
