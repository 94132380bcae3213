"""Sixteen Atari games from prompts such as "pong, the right paddle moves up", from scratch, on two CPU cores.

    python examples/arcade/make_clips.py --output=runs/arcade/clips
    python -m videogen_jax.pack --input=runs/arcade/clips --output=runs/arcade/data --size=64 --fps=15 --frames=30 \
        --validation_fraction=0.2
    python launch.py --config=configs/vae_arcade.py --workdir=runs/arcade/vae
    python -m videogen_jax.encode --config=configs/arcade_64.py --input=runs/arcade/data
    python launch.py --config=configs/arcade_64.py --workdir=runs/arcade/64

`make arcade` runs these, then samples and judges. Hardware, wall time and result: docs/arcade.md.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        batch_size=16,
        data=dict(path="runs/arcade/latents", frames=16, fps=15.0, threads=1),
        text=dict(length=12),
        vae=dict(name="workdir", path="runs/arcade/vae"),
        model=dict(
            patch_size=(4, 2, 2),
            width=192,
            depth=8,
            num_heads=3,
            detailer_width=96,
            detailer_blocks=2,
        ),
        schedule=dict(name="cosine", zero_terminal_snr=True, shift=2.0),
        objective=dict(prediction="x0", weighting="velocity", time_distribution="uniform"),
        learning_rate=dict(peak=2.5e-3, warmup_steps=100, final_fraction=0.01),
        optimizer=dict(name="muon", b1=0.95, b2=0.95),
        train=dict(steps=2000, precision="float32"),
        memory=dict(unroll=4),
        ema=dict(decays=(0.998,)),
        mesh=dict(data=2),
        checkpoint=dict(every=200, keep=10),  # FVD after 10, 30 and 100 %
        evaluation=dict(fvd_every=1000, fvd_clips=32, reference="runs/arcade/data"),
        sample=dict(
            every=1000,
            sampler="ddim",
            num_inference_steps=25,
            guidance_scale=2.0,
            prompts=(
                "pong, the right paddle moves up",
                "freeway, the chicken moves up",
                "space invaders, the cannon moves left",
                "breakout, the paddle moves right",
                "ms pacman, Ms. Pac-Man moves left",
                "seaquest, the submarine moves right",
                "boxing, the white boxer moves left",
                "enduro, the car steers right",
            ),
        ),
    )
