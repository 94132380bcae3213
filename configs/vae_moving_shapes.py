"""A video autoencoder of the moving shapes at 64x64, from scratch, on two CPU cores.

    python -m videogen_jax.pack --synthetic=moving_shapes --clips=1152 --size=64 --frames=17 \
        --output=runs/vae_moving_shapes/data
    python launch.py --config=configs/vae_moving_shapes.py --workdir=runs/vae_moving_shapes

A diffusion model on its latents: docs/latents.md. 0.59 million parameters.
Hardware: two cores of an AMD EPYC virtual machine that others used too, no GPU. Processor time 552 s from start to end,
21 min of wall time; result: 30.3 dB on 16 validation clips (30 dB after 1,100 steps); 2026-11-25.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        batch_size=4,
        data=dict(path="runs/vae_moving_shapes/data", frames=9, flip=True, threads=1),
        autoencoder=dict(patch=(4, 4, 4), strides=((1, 2, 2),), widths=(64, 128), blocks=1),
        loss=dict(kl_weight=1e-4),
        learning_rate=dict(peak=6e-3, warmup_steps=20, final_fraction=0.01),
        optimizer=dict(name="muon", b1=0.95, b2=0.95, weight_decay=0.05),
        train=dict(steps=1300, precision="float32", validation_batches=4),
        ema=dict(decays=(0.99,)),
        checkpoint=dict(every=100, keep=1),
        sample=dict(every=400, clips=8),
    )
