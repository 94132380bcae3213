"""Turns packed clips into latents, once: every later epoch of training reads only those.

    python -m videogen_jax.encode --config=configs/dit_512.py --input=runs/dit_512/clips

The config says with which autoencoder (`vae.name`, `vae.path`), whether captions are embedded too (`text.encoder`,
`text.path`, `text.pooled_encoder`), whether mirrored clips are wanted (`data.flip`), how training clips are augmented
before (`data.height`, `data.width`, `augment`), and where the latents go (`data.path`; --output goes elsewhere). The
same command again continues a call that was ended, does nothing where all is done, and refuses an output that was made
of something else.
On several machines give each its part of the shards, as --shard=0/4 to --shard=3/4; whoever comes last finishes the
data set.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from ml_collections import config_flags

from videogen_jax import command
from videogen_jax import config as configs


def define_flags(flag_values=flags.FLAGS):
    """Defines the command's flags; not done on import, so that verbs can import one another."""
    config_flags.DEFINE_config_file(
        "config", None, "File in configs/.", lock_config=True, flag_values=flag_values
    )
    text = "Folder of a data set that pack made, plain or in buckets."
    flags.DEFINE_string("input", None, text, flag_values=flag_values)
    text = "Folder of the latents [config.data.path]."
    flags.DEFINE_string("output", None, text, flag_values=flag_values)
    text = "i/n: this call takes the i-th of n parts, counted from 0."
    flags.DEFINE_string("shard", "0/1", text, flag_values=flag_values)


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit code."""
    command.refuse(arguments)
    values = flags.FLAGS
    command.log_progress()
    config = configs.validate_values(values.config)
    share = command.parse_share(values.shard)
    if config.vae.name == "identity":
        raise ValueError(
            "vae.name is 'identity', which encodes nothing: train on the packed clips themselves, or set "
            "--config.vae.name to an autoencoder, such as sd or wan."
        )

    from videogen_jax.data import bucketed_data, output_folder
    from videogen_jax.packing import encode_latents  # TensorFlow: only once the flags are right
    from videogen_jax.run import caption_embedder
    from videogen_jax.run.model import clip_shape, make_latent_space, with_shape

    sets = bucketed_data.open_buckets(values.input)
    output = Path(values.output or config.data.path)
    if not (output / "dataset_info.json").exists() and not bucketed_data.is_bucketed(output):
        output_folder.check_output_folder(
            output, "--output"
        )  # before weights are loaded and clips encoded
    space = make_latent_space(config)
    autoencoder = space.encoding().describe(fetch=True)
    params = autoencoder.load()
    captions: dict[str, Any] = {}
    if config.text.encoder != "words":
        embedder = caption_embedder.load_embedder(config.text, space.dtype)
        info = caption_embedder.describe_embeddings(embedder, config.text, config.vae.stored)
        captions = {"texts": info, "embed": embedder.run}
    devices = jax.local_devices()
    logging.info("Encoding %s into %s on %d devices.", values.input, output, len(devices))
    bucketed = bucketed_data.is_bucketed(values.input)
    bucketed_data.check_kind(output, bucketed)
    reports = []
    try:
        for folder, data in sets.items():
            shape = (data.frames, data.height, data.width) if bucketed else clip_shape(config)
            encoder = make_encoder(with_shape(config, shape), autoencoder, params, data.words)
            encoder = dataclasses.replace(encoder, **captions)
            place = output / Path(folder).name if bucketed else output
            label = Path(folder).name if bucketed else None
            with command.explain_full_disk(place):
                report = encode_latents.encode(folder, place, encoder, share=share, label=label)
            reports.append(report)
    except KeyboardInterrupt:
        command.say("encode: stopped: the same command again continues behind the finished shards.")
        return 130
    # Looked at now: other calls may have finished buckets since this one left them.
    names = [Path(folder).name for folder in sets] if bucketed else [""]
    whole = all((output / name / "dataset_info.json").exists() for name in names)
    if bucketed and whole:
        bucketed_data.write_index(output, names)
    command.say(summarize(reports, output, whole))
    return 0


def make_encoder(config: Any, autoencoder: Any, params: Any, words: Iterable[str]) -> Any:
    """What makes the latents of clips of the config's shape, on all devices of this process.

    Args:
      config: of the run.
      autoencoder: of `autoencoder.make_autoencoder`.
      params: of its `load`.
      words: of the captions.
    Returns:
      The `encode_latents.Encoder`.
    Raises:
      ValueError: the shape does not divide by the autoencoder's strides.
    """
    import numpy as np

    from videogen_jax.models import chunks
    from videogen_jax.models.weights import hash_params
    from videogen_jax.packing import encode_latents
    from videogen_jax.parallel import mesh as meshes
    from videogen_jax.run.model import clip_shape
    from videogen_jax.train import setup

    devices = jax.local_devices()
    mesh = meshes.make_mesh(data=len(devices), devices=devices)
    frames, *size = clip_shape(config)
    per_chunk = min(config.vae.chunk_frames * mesh.size, frames)
    program = chunks.make_encoder(autoencoder, mesh, per_chunk, tuple(size))
    placed = program.put_params(params)
    return encode_latents.Encoder(
        run=lambda video: np.concatenate(list(chunks.encode_chunks(program, placed, video))),
        name=config.vae.name,
        weights=hash_params(params),
        shape=autoencoder.latent_shape(frames, *size)[1:],
        precision=config.vae.encode_precision,
        dtype=config.vae.stored,
        mirrored=setup.mirrors(config, words),
        time_stride=autoencoder.downsample[0],
        augmentation=setup.make_augmentation(config),
        frames=frames,
        seed=config.seed,
    )


def summarize(reports: list[dict[str, Any]], output: Any, whole: bool) -> str:
    """Says in a line what was encoded, and how many captions were too long for the text encoder."""
    cut = sum(report.get("cut_captions", 0) for report in reports)
    more = (
        ""
        if not cut
        else f"; {cut} captions have more tokens than the text encoder reads, and were cut"
    )
    return _summarize_clips(reports, output, whole) + more


def _summarize_clips(reports: list[dict[str, Any]], output: Any, whole: bool) -> str:
    clips = sum(sum(report["clips"].values()) for report in reports)
    new = sum(report["new"] for report in reports)
    seconds = round(sum(report["seconds"] for report in reports), 1)
    if not whole:
        return f"encoded {new} clips in {seconds} s; other parts of {output} are not done yet"
    if not new:
        return f"{output} holds the latents of these {clips} clips already"
    return f"encoded {new} clips into {output}, which has all {clips} now, in {seconds} s"


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["config", "input"])
    command.start("encode", main)
