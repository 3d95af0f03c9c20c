"""What a recipe will take on given devices: stages (memory)  work (arithmetic, store)  choices (what fits)  report."""
