"""A search for the best settings of a recipe."""
