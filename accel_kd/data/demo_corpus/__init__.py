"""A small synthetic intent corpus, so that the demo recipe needs no download."""
