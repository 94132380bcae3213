"""Long videos: 512x512 without end, eight latent frames at a time, on two GPUs of 24 GB, as ViD-GPT and Ca2-VDM.

    python -m videogen_jax.pack --input=CLIPS --output=runs/long_512/clips --size=512 --fps=24 --frames=33
    python -m videogen_jax.encode --config=configs/long_512.py --input=runs/long_512/clips
    python launch.py --config=configs/long_512.py --workdir=runs/long_512
    python -m videogen_jax.sample --workdir=runs/long_512 --num_frames=480 --prompts "..."

Causal attention over time on 33 frames; half of the clips goes on from a clean prefix (arXiv:2406.10981,
arXiv:2411.16375), a fifth begins with a picture, the rest with the prompt alone. A video may have any number of frames
and then takes no more memory than one of 33.

Hardware: two GPUs of 24 GB. A model of 142 M parameters. Memory: the README's table; wall time and result: unmeasured.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="dit_512",
        data=dict(path="runs/long_512/latents", frames=33),
        model=dict(
            causal=True, conditioning="frames", micro_conditions=("augmentation",), time_cycle=33
        ),
        tasks=dict(text=0.3, image=0.2, prefix=0.5),
        # 1 + 8k continue a video that begins with a picture, 8k one that begins with the caption.
        prefix=dict(lengths=(1, 8, 9, 16, 17, 24, 25)),
        train=dict(steps=400_000, accumulation=1, log_every=50),
        checkpoint=dict(every=2000),
        mesh=dict(fsdp=2, seq=1),
        sample=dict(every=5000),
    )
