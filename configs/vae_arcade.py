"""The autoencoder of sixteen Atari games at 64x64, from scratch, on two CPU cores.

    python -m videogen_jax.pack --input=runs/arcade/clips --output=runs/arcade/data --size=64 --fps=15 --frames=30 \
        --validation_fraction=0.2
    python launch.py --config=configs/vae_arcade.py --workdir=runs/arcade/vae

Its data and the diffusion model on its latents: configs/arcade_64.py. Each frame is encoded by itself, 4x in space.
Hardware, wall time and result: docs/arcade.md.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        batch_size=16,
        data=dict(path="runs/arcade/data", frames=4, fps=15.0, threads=1),
        autoencoder=dict(
            channels=12, patch=(1, 4, 4), strides=(), widths=(96,), blocks=2, temporal_kernel=1
        ),
        # Squared errors: the players are few pixels of strong contrast.
        loss=dict(distance="l2", kl_weight=2e-4),
        learning_rate=dict(peak=6e-3, warmup_steps=20, final_fraction=0.01),
        optimizer=dict(name="muon", b1=0.95, b2=0.95, weight_decay=0.05),
        train=dict(steps=1300, precision="float32", validation_batches=4),
        ema=dict(decays=(0.99,)),
        mesh=dict(data=2),
        checkpoint=dict(every=500, keep=1),
        sample=dict(every=500, clips=8),
    )
