"""Image to video: a picture of a shape and the direction of a prompt, from scratch, on two CPU cores.

    python -m videogen_jax.pack --synthetic=moving_shapes --clips=2880 --size=24 --frames=8 \
        --output=runs/quickstart/data
    python launch.py --config=configs/i2v_moving_shapes.py --workdir=runs/i2v_moving_shapes

Stable Video Diffusion's way (arXiv:2311.15127): the first frame beside the noise, EDM's noise levels and sampler.
Hardware, wall time and result: docs/image_to_video.md.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="quickstart",
        text=dict(dropout=0.05),
        model=dict(conditioning="frames", micro_conditions=("augmentation",)),
        tasks=dict(text=0.1, image=0.8, frames=0.1),
        known=dict(dropout=0.05, joint_dropout=0.05),
        schedule=dict(
            name="edm", zero_terminal_snr=False, shift=1.0, sigma_max=80.0, sigma_data=0.6
        ),
        # x0 and not EDM's F, which has noise in it: a patch has more values than the hidden size.
        objective=dict(time_distribution="log_normal", time_mean=0.7, time_std=1.6),
        sample=dict(
            sampler="dpmpp_2m",
            num_inference_steps=25,
            guidance_scale=1.5,
            guidance_interval=(),
            spacing="linspace",
        ),
    )
