"""Train a text-to-video Diffusion Transformer from scratch in JAX."""

__version__ = "0.1.0"
