"""flame: train sequence models of any architecture at any scale from one TOML file."""

__version__ = "0.1.0"
