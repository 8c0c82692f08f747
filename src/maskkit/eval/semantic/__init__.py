"""Label maps: mean IoU, report and results files."""
