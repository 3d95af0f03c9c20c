"""Examples from a source to padded batches: read, identified, labelled, tokenised, ordered, sharded."""
