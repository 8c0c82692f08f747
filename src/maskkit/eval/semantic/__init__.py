"""Label maps: mean IoU, its report and its files."""
