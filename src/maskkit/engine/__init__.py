"""Training: the loops (`train`, `pretrain`), what both share (`run`), optimizer, state, evaluation and log."""
