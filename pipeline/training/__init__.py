"""Training: a step, an epoch, a phase; checkpoints; Ray Train around them."""
