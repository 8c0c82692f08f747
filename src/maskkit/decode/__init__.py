"""From the tensors of a model to predictions in original pixels. Numpy and scipy alone."""
