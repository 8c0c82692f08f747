"""Inference: sources of images, preprocessing, runtimes, the prediction loop, test-time augmentation and drawing."""
