"""Runs that can be sampled without having been trained: random parameters in a checkpoint."""

import collections

import jax
import numpy as np

from tests.models.randomise import randomise
from tests.tiny import make_run, tiny_config
from videogen_jax.data.vocabulary import Vocabulary, split_words
from videogen_jax.run import checkpoint, saved_config

CAPTIONS = ["a red circle moving left", "a blue square moving up"]
COUNTS = collections.Counter(word for caption in CAPTIONS for word in split_words(caption))


def image_config():
    """Image to video: 4 frames of 8x8 pixels, the first of which may be known."""
    config = tiny_config()
    config.mesh.fsdp = 1
    config.model.conditioning = "frames"
    config.model.micro_conditions = ("augmentation",)
    config.tasks.update({"text": 0.2, "image": 0.8})
    return config


def long_config():
    """Long videos: chunks of 2 frames behind 1 or 2 others."""
    config = tiny_config()
    config.mesh.fsdp = 1
    config.model.update({"causal": True, "conditioning": "prefix", "time_cycle": 4})
    config.tasks.update({"text": 0.5, "prefix": 0.5})
    config.prefix.update({"lengths": (1, 2), "chunk": 2})
    return config


def joint_config():
    """All tasks by one model."""
    config = long_config()
    config.model.conditioning = "frames"
    config.model.micro_conditions = ("augmentation",)
    config.tasks.update({"text": 0.2, "image": 0.2, "frames": 0.2, "prefix": 0.4})
    return config


def write_run(folder, config, latents=None, scale=0.3, text=None, averages=()):
    """The workdir of a run at step 1, whose words are those of CAPTIONS; returns the folder.

    `text` is the TextInfo of embedded captions; `averages` are the scales of the moving averages, by default all alike.
    """
    run = make_run(config)
    params = randomise(run.abstract.params, scale)
    scales = averages or [scale] * len(run.ema_decays)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), run.abstract.opt_state)
    state = run.abstract.replace(
        step=np.int32(1),
        params=params,
        ema={
            name: randomise(run.abstract.params, one)
            for name, one in zip(run.ema_decays, scales, strict=True)
        },
        opt_state=zeros,
        frozen=run.abstract.frozen and randomise(run.abstract.frozen, scale),
        rng=jax.random.key(0),
    )
    words = []
    if text is None and "text" in config:
        words = Vocabulary.from_counts(COUNTS, config.text.vocabulary_size).to_list()
    metadata = {"vocabulary": words, "text": text and text._asdict()}
    metadata |= {"config": config.to_dict(), "latents": latents and latents._asdict()}
    folder.mkdir(parents=True, exist_ok=True)
    saved_config.write_config(folder, config)
    with checkpoint.open_checkpoints(folder, 1) as manager:
        checkpoint.save(manager, state, metadata)
        manager.wait_until_finished()
    return folder
