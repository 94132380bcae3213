"""The quick start: moving shapes from prompts, from scratch, on two CPU cores.

    python -m videogen_jax.pack --synthetic=moving_shapes --clips=2880 --size=24 --frames=8 \
        --output=runs/quickstart/data
    python launch.py --config=configs/quickstart.py --workdir=runs/quickstart

`make quickstart` runs both, then samples and judges them. Hardware, wall time and result: docs/quickstart.md.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        batch_size=32,
        data=dict(path="runs/quickstart/data", frames=8, height=24, width=24, threads=1),
        text=dict(vocabulary_size=32, length=8),
        model=dict(patch_size=(4, 6, 6), width=128, depth=4, num_heads=2),
        # Large flat shapes show through much noise.
        schedule=dict(name="cosine", zero_terminal_snr=True, shift=4.0),
        # A patch has more values than the hidden size: x0 lies in fewer dimensions than noise does.
        objective=dict(prediction="x0", time_distribution="uniform"),
        learning_rate=dict(peak=3e-3, warmup_steps=100, final_fraction=0.01),
        optimizer=dict(name="muon", b1=0.95, b2=0.95),
        train=dict(steps=4200, precision="float32"),
        memory=dict(unroll=2),
        ema=dict(decays=(0.999,)),
        mesh=dict(data=2),  # so small a model loses more by sharding parameters than it saves
        checkpoint=dict(every=600),
        sample=dict(
            every=1400,
            sampler="ddim",
            # At little noise, sigma / alpha up to 2: chosen on samples, see docs/quickstart.md.
            guidance_scale=3.0,
            guidance_interval=(0.0, 2.0),
            clip_x0=True,
            prompts=(
                "a red circle moving left",
                "a green square moving right",
                "a blue triangle moving up",
                "a yellow circle moving down",
                "a cyan square moving up left",
                "a magenta triangle moving up right",
                "a red square moving down left",
                "a blue circle moving down right",
            ),
        ),
    )
