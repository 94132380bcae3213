"""Taichi-HD without conditioning, 16 frames of 256x256, every sixth frame: docs/protocols/taichi.md.

    python examples/protocols.py taichi --input=taichi-256/frames/train --output=runs/taichi/videos
    python -m videogen_jax.pack --input=runs/taichi/videos --output=runs/taichi/clips --size=256 \
        --fps=8 --frames=2000 --min_frames=16 --validation_fraction=0
    python -m videogen_jax.encode --config=configs/taichi_256.py --input=runs/taichi/clips
    python launch.py --config=configs/taichi_256.py --workdir=runs/taichi

Hardware: two GPUs of 24 GB (the page has the plan). A model of 676 M parameters, of the size of
Latte-XL/2 (arXiv:2401.03048); wall time and result: unmeasured.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="faceforensics_256",
        data=dict(path="runs/taichi/latents"),
        sample=dict(prompts=("taichi",)),
    )
