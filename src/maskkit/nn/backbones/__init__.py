"""Networks that give feature maps."""
