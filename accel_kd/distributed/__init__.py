"""Ranks: started and proved, seeded, and the few things that they say to each other."""
