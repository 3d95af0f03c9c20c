"""Turns each section of a recipe into the objects it describes; nothing below this package sees a recipe."""
