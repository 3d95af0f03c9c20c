"""A store of teacher logits on disk: what is in it, how it is coded, written, checked and read. See FORMAT.md."""
