"""Checkpoints on disk: what is in one, how it is written, checked, found and removed. `files` describes the layout."""
