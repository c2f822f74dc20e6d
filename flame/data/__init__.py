"""The data room: from files and hub datasets to batches whose order is a function of (config, seed) alone.

    sources -> order -> token streams -> packing -> rows -> (worker processes) -> loader
    files      which     documents read,  rows of    lanes    the same rows,       [B, T] batches,
    as random  document  cut, encoded     seq_len    in       made elsewhere       lane states
    access     is next                    tokens     turn

Every stage is one small module of this folder and can be tested alone. The modules that run inside worker processes
import neither torch nor transformers, so that a worker starts in a fraction of a second and stays small.
"""

from flame.data.encoder import Encoder, TextEncoder

__all__ = ["Encoder", "TextEncoder"]
