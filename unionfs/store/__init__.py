"""The image graph: records, layers, tags and locks in the directory layout of early Docker."""
