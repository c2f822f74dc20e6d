"""Checkpoints: steps that exist only once complete, and the way to and from HuggingFace folders.

``layout`` names the files of a run and says when a step is good; ``storage`` writes and reads the steps of
``torch.distributed.checkpoint`` (DCP); ``manager`` and ``loading`` use them during training; ``hf_export`` and
``hf_import`` convert; ``stored``, ``hf_folder`` and ``safetensors_file`` know where the bytes of a tensor lie.
"""
