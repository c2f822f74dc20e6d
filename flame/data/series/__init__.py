"""Series: examples of values over time with a class or a target, whatever files they are in."""
