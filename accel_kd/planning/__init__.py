"""What a run will take, from the shapes of its models alone: memory by part, arithmetic, time until a store pays."""
