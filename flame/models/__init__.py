"""From a model config to the HuggingFace class that torchtitan trains."""
