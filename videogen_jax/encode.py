"""Turns packed clips into latents, once: every later epoch of training reads only those.

    python -m videogen_jax.encode --config=configs/dit_512.py --input=runs/dit_512/clips

The config says with which autoencoder (`vae.name`, `vae.path`), whether mirrored clips are wanted (`data.flip`), how
training clips are augmented before (`data.height`, `data.width`, `augment`), and where the latents go (`data.path`;
--output goes elsewhere). The same command again continues a call that was ended, does nothing where all is done, and
refuses an output that was made of something else. On several machines give each its part of the shards, as --shard=0/4
to --shard=3/4; whoever comes last finishes the data set.
"""

import re

import jax
from absl import flags, logging
from ml_collections import config_flags

from videogen_jax import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "File in configs/.", lock_config=True)
_INPUT = flags.DEFINE_string("input", None, "Folder of a data set that pack made.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the latents [config.data.path].")
_SHARD = flags.DEFINE_string(
    "shard", "0/1", "i/n: this call takes the i-th of n parts, counted from 0."
)


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit code."""
    command.refuse(arguments)
    logging.set_verbosity(max(logging.INFO, logging.get_verbosity()))
    config = _CONFIG.value
    share = parse_share(_SHARD.value)
    if config.vae.name == "identity":
        raise ValueError(
            "vae.name is 'identity', which encodes nothing: train on the packed clips themselves, or set "
            "--config.vae.name=sd or taef2."
        )

    import numpy as np

    # TensorFlow: only once the flags are right.
    from videogen_jax.data import augment, encoding, pipeline
    from videogen_jax.models.chunks import encode_chunks, make_encoder
    from videogen_jax.models.weights import hash_params
    from videogen_jax.parallel import mesh as meshes
    from videogen_jax.train import setup
    from videogen_jax.train.loop import make_augmentation

    data = pipeline.open_data(_INPUT.value)
    augmentation = make_augmentation(config)
    augment.check_augmentation(augmentation, data, config.data.frames)
    autoencoder = setup.describe_autoencoder(config, fetch=True)
    params = autoencoder.load()
    devices = jax.local_devices()
    mesh = meshes.make_mesh(data=len(devices), devices=devices)
    frames = min(config.vae.chunk_frames * mesh.size, data.frames)
    program = make_encoder(autoencoder, mesh, frames, augmentation.size)
    placed = program.put_params(params)
    encoder = encoding.Encoder(
        run=lambda video: np.concatenate(list(encode_chunks(program, placed, video))),
        name=config.vae.name,
        weights=hash_params(params),
        shape=autoencoder.latent_shape(data.frames, *augmentation.size)[1:],
        precision=setup.encoder_dtype(config),
        dtype=config.vae.stored,
        mirrored=setup.mirrors(config, data.words),
        augmentation=augmentation,
        frames=config.data.frames,
        seed=config.seed,
    )
    output = _OUTPUT.value or config.data.path
    logging.info("Encoding %s into %s on %d devices.", _INPUT.value, output, mesh.size)
    try:
        report = encoding.encode(_INPUT.value, output, encoder, share=share)
    except KeyboardInterrupt:
        print("encode: stopped: the same command again continues behind the finished shards.")
        return 130
    print(summarize(report, output))
    return 0


def parse_share(text: str) -> tuple[int, int]:
    """Reads "3/64" as (3, 64).

    Raises:
      ValueError: it is no part of a whole.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    part, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if part >= count:
        raise ValueError(
            f"--shard does not understand {text!r}: write it like 3/64, for the parts 0/64 to 63/64."
        )
    return part, count


def summarize(report: dict, output: str) -> str:
    """Says in a line what was encoded."""
    clips = sum(report["clips"].values())
    if not report["finished"]:
        return f"encoded {report['new']} clips in {report['seconds']} s; other parts of {output} are not done yet"
    if not report["new"]:
        return f"{output} holds the latents of these {clips} clips already"
    return f"encoded {report['new']} clips into {output}, which has all {clips} now, in {report['seconds']} s"


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "input"])
    command.start("encode", main)
