"""One file per method; no file imports another."""
