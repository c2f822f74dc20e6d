"""Model families that come with flame, one folder each; found by folder name (``flame.plugin``)."""
