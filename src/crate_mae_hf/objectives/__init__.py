"""Objectives: what a masked autoencoder is trained by, beyond its own loss, and what is left behind after training."""
