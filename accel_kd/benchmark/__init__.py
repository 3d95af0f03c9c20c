"""What the program costs, measured on the program as users start it; each benchmark is a module to run."""
