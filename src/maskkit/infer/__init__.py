"""From images to predictions: the loop, the last steps in original pixels, and the drawing."""
