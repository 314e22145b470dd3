"""Self-supervised video pretraining that learns motion as well as scene."""

__version__ = "0.1.0"
