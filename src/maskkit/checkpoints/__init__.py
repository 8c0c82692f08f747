"""Weight files: our own self-describing ones, those of other projects, and where to find them."""
