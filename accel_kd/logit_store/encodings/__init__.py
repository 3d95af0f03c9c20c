"""The ways to keep a teacher's logits, one a module; `accel_kd.logit_store.encoding` chooses among them."""
