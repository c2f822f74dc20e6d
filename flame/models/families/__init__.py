"""What flame knows of other packages' families: which of fla's modules can be split, and how."""
