"""Autoencoders for tests: published weights if available, else PyTorch's networks with random ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from videogen_jax.models import autoencoder as autoencoders

TAEF2 = Path(__file__).resolve().parents[3] / "shared" / "weights" / "taef2.safetensors"


def taef2_weights() -> Path:
    if not TAEF2.is_file():
        pytest.skip(f"the published weights are not at {TAEF2}")
    return TAEF2


def random_taef2():
    """The network with random weights that keep activations in range, and its parameters."""
    autoencoder = autoencoders.make_autoencoder("taef2")
    return autoencoder, _draw(autoencoder.abstract_params)


def sd_config(**changes):
    """A small network with four levels like Stable Diffusion's."""
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.42.1",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [8, 16, 16, 24],
        "layers_per_block": 2,
        "act_fn": "silu",
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 64,
        "scaling_factor": 0.18215,
    } | changes


def random_sd(folder, **changes):
    """The small network with random weights, and its parameters."""
    (folder / "config.json").write_text(json.dumps(sd_config(**changes)))
    autoencoder = autoencoders.make_autoencoder("sd", str(folder))
    return autoencoder, _draw(autoencoder.abstract_params)


def _draw(tree):
    """He-normal kernels; small random values elsewhere, around 1 for norm scales."""
    rng = np.random.default_rng(0)

    def draw(tree):
        if isinstance(tree, dict):
            return {name: draw(branch) for name, branch in tree.items()}
        fan_in = np.prod(tree.shape[:-1])
        return (rng.standard_normal(tree.shape) / np.sqrt(fan_in)).astype(np.float32)

    def lift(tree):
        return {
            name: lift(branch)
            if isinstance(branch, dict)
            else 0.1 * branch + (name == "scale")
            if branch.ndim == 1
            else branch
            for name, branch in tree.items()
        }

    return lift(draw(tree))
