"""UCF-101 by class, 16 frames of 256x256, every third frame, in latents of 32x32: docs/protocols/ucf101.md.

    python examples/protocols.py ucf101 --input=UCF-101 --output=runs/ucf101/videos
    python -m videogen_jax.pack --input=runs/ucf101/videos --output=runs/ucf101_256/clips --size=256 \
        --fps=8 --frames=600 --min_frames=16 --validation_fraction=0
    python -m videogen_jax.encode --config=configs/ucf101_256.py --input=runs/ucf101_256/clips
    python launch.py --config=configs/ucf101_256.py --workdir=runs/ucf101_256

Hardware: two GPUs of 24 GB (the page has the plan). A model of 676 M parameters, of the size of
Latte-XL/2 (arXiv:2401.03048), trained as long as FAR (arXiv:2503.19325): 400,000 steps of 32 clips; wall time and
result: unmeasured.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        batch_size=32,
        data=dict(path="runs/ucf101_256/latents", height=256, width=256, flip=True),
        vae=dict(name="sd", path="stabilityai/sd-vae-ft-ema"),
        text=dict(vocabulary_size=104, length=1),  # a caption is the one word of its class
        model=dict(width=1152, depth=28, num_heads=16),
        learning_rate=dict(peak=1e-4, final_fraction=1.0),
        optimizer=dict(b2=0.999, weight_decay=0.0),
        train=dict(steps=400_000, validation_batches=0),
        memory=dict(remat="block"),
        checkpoint=dict(every=5000),
        sample=dict(every=20_000, guidance_scale=2.0),
    )
