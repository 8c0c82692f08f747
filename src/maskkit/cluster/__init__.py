"""Prediction on many machines with Ray Data."""
