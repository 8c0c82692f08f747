"""Files of weights: our own self-describing ones, those of others, and where they come from."""
