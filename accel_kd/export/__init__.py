"""What a run leaves behind for others: the model, its card, its predictions, the table."""
