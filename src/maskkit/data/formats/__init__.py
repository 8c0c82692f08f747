"""One reader per format of labels."""
