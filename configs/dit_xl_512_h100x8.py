"""DiT-XL on 20 seconds of 512x512 at 24 fps, on eight H100: each GPU takes two clips a step, one at a time.

    python -m videogen_jax.pack --input=CLIPS --output=runs/dit_512/clips --size=512 --fps=24 --frames=480
    python -m videogen_jax.encode --config=configs/dit_xl_512_h100x8.py --input=runs/dit_512/clips
    python launch.py --config=configs/dit_xl_512_h100x8.py --workdir=runs/dit_xl_512
    python -m videogen_jax.plan --config=configs/dit_xl_512_h100x8.py --target=h100x8

Sixteen clips a step, 25,000 steps: the 400,000 clips of configs/dit_xl_512.py. Parameters and train state are sharded
over the eight GPUs; nothing waits in the host's memory.

Hardware: eight GPUs of 80 GB. A model of 609 M parameters. Memory and days, by `plan`: docs/choose.md; wall time and
result: unmeasured.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="dit_xl_512",
        batch_size=16,
        train=dict(steps=25_000, accumulation=2, log_every=50),
        checkpoint=dict(every=500),
        memory=dict(offload_activations=False, pieces=1),
        mesh=dict(fsdp=8, seq=1),
        sample=dict(batch_size=8),
    )
