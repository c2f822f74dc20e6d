from tests.runs import materials

__all__ = ["materials"]
