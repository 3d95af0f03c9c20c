"""The recipe as a checked value: reading and checking one imports no torch."""

from accel_kd.config.load import load_recipe, recipe_names, recipe_text, to_yaml
from accel_kd.config.schema import RunConfig

__all__ = ["RunConfig", "load_recipe", "recipe_names", "recipe_text", "to_yaml"]
