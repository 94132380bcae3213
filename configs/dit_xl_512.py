"""The largest that two GPUs of 24 GB train: DiT-XL on 20 seconds of 512x512 at 24 fps, in latents of 64x64.

    python -m videogen_jax.pack --input=CLIPS --output=runs/dit_512/clips --size=512 --fps=24 --frames=480
    python -m videogen_jax.encode --config=configs/dit_xl_512.py --input=runs/dit_512/clips
    python launch.py --config=configs/dit_xl_512.py --workdir=runs/dit_xl_512
    python -m videogen_jax.plan --config=configs/dit_xl_512.py --target=rtx3090x2

Hardware: two GPUs of 24 GB. A model of 609 M parameters, 491,520 tokens a clip; half of a clip's frames, or half of its
places, is on each GPU. The inputs of the blocks wait in the host's
memory: 15 GiB for each GPU. Memory: the README's table; wall time and
result: unmeasured.

Heads are of 72, as DiT's. `--config.model.num_heads=18` makes them 64 and `=9` 128, the sizes for which flash attention
is written: 72 may run as slowly as 128. FLOPs, parameters and memory are the same; wall time: unmeasured.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="dit_512",
        model=dict(
            width=1152,
            depth=28,
            num_heads=16,
            modulation="adaln_single",
            residual_dtype="compute",  # float32 takes twice the pinned host memory: 30 GiB a GPU
        ),
        learning_rate=dict(peak=1e-4),
        train=dict(log_every=5),
        checkpoint=dict(every=50),
        memory=dict(pieces=8),
        sample=dict(every=500),
    )
