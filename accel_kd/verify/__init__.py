"""Proves that every other way of running a recipe equals the plain one. `verification` tells the story."""
