from tests.parallel.parity import train
from tests.runs import materials, pool

__all__ = ["materials", "pool", "train"]
