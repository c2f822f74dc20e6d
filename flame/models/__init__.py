"""From a model config to the HuggingFace class that torchtitan trains."""

import flame.compat  # noqa: F401  torchtitan binds its device when it is first imported
