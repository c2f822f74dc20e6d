"""Command lines, thin: what they do lives in the rooms they call."""
