from tests.runs import materials, pool

__all__ = ["materials", "pool"]
