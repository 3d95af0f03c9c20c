"""The pictures of a comparison: one module a figure, each a function from values to a matplotlib `Figure`."""
