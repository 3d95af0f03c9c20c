"""What trained models cost to run: each in several forms, each form in a process of its own, in turns."""
