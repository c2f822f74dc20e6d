"""What a model is trained to do: one file a task, found by name (``flame.plugin.load_task``)."""
