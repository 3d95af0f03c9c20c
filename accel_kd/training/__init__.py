"""One student trained: the step, the loop around it, and what a run is told."""
