"""Config, data set and checkpoint of a run brought together: its length, its buckets, and whether they fit."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import ml_collections
from absl import logging
from jax.sharding import Mesh

from videogen_jax import config as configs
from videogen_jax import paths
from videogen_jax.data import augment, bucketed_data, pipeline
from videogen_jax.data.augment import Augmentation
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.data.vocabulary import MOST_WORDS, NUM_SPECIAL_IDS
from videogen_jax.models import hub
from videogen_jax.parallel import mesh as meshes
from videogen_jax.run.model import (
    Grid,
    Shape,
    clip_shape,
    describe_large_patch,
    make_latent_space,
    with_shape,
)
from videogen_jax.run.text_conditioning import Texts
from videogen_jax.train.run_kinds import Kind
from videogen_jax.train.training_run import Run


def warn_of_large_patch(config: ml_collections.ConfigDict) -> None:
    """Warns, in one process, where `describe_large_patch` has something to say of the config.

    Args:
      config: of the run, complete and valid.
    """
    if jax.process_index() == 0 and (sentence := describe_large_patch(config)):
        logging.warning("%s", sentence)


def check_data(config: ml_collections.ConfigDict, sets: Mapping[str, pipeline.PackedData]) -> None:
    """Raises ValueError for clips of another size or rate than the config's.

    Args:
      config: of the run.
      sets: of `bucketed_data.open_buckets`.
    """
    bucketed = bucketed_data.is_bucketed(config.data.path)
    shapes = bucket_shapes(config, sets)
    wanted_shape = clip_shape(config)
    if wanted_shape not in shapes.values():
        raise ValueError(
            f"data.frames, height and width are {shape_name(wanted_shape)}, but the buckets in {config.data.path} are "
            f"{', '.join(map(shape_name, shapes.values()))}: set them to one of these, which samples then have."
        )
    for folder, data in sets.items():
        # Pixels may be cropped: check_augmentation looks at their size.
        for name in ("height", "width", "fps") if data.latents and not bucketed else ("fps",):
            wanted, packed = config.data[name], getattr(data, name)
            if wanted != packed:
                raise ValueError(
                    f"data.{name} is {wanted}, but the clips in {folder} were packed with {packed}: "
                    f"set --config.data.{name}={packed}, or pack again."
                )
        bucket = with_shape(config, shapes[folder])
        check_latents(bucket, data.latents, folder)
        check_augmentation(bucket, data)
    clips = sum(sum(data.lengths["train"]) for data in sets.values())
    if config.batch_size > clips:
        logging.warning(
            "batch_size is %d, but %s has %d training clips: each step sees some of them more than once; lower "
            "--config.batch_size, or pack more clips.",
            *(config.batch_size, config.data.path, clips),
        )


def bucket_shapes(
    config: ml_collections.ConfigDict, sets: Mapping[str, pipeline.PackedData]
) -> dict[str, Shape]:
    """Folder of each bucket to the shape of its clips; the config's shape where the data set has no buckets."""
    if not bucketed_data.is_bucketed(config.data.path):
        return dict.fromkeys(sets, clip_shape(config))
    return {folder: (data.frames, data.height, data.width) for folder, data in sets.items()}


def bucket_config(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    shape: Shape,
    grid_of: Callable[[ml_collections.ConfigDict], Grid],
) -> tuple[ml_collections.ConfigDict, Mesh]:
    """The config and the mesh for clips of a bucket.

    As many clips make a batch as have about the tokens of a batch of the config's own shape. Images cannot be split
    among the devices of `seq`: there these are more of `fsdp`, which lays the state out in the same way.

    Args:
      config: of the run.
      mesh: of the run.
      shape: (frames, height, width) of the bucket's clips in pixels.
      grid_of: config to (T, H, W) of a clip's tokens.
    Returns:
      (config with the bucket's shape and batch size, mesh).
    """
    if shape == clip_shape(config):
        return config, mesh
    tokens = config.batch_size * math.prod(grid_of(config))
    config = with_shape(config, shape)
    grid = grid_of(config)
    if grid[0] == 1:
        sizes = dict(mesh.shape)
        sizes |= {"fsdp": sizes["fsdp"] * sizes["seq"], "seq": 1}
        mesh = meshes.make_mesh(**sizes, devices=list(mesh.devices.flat))
    step = meshes.batch_parts(mesh) * config.train.accumulation
    with config.unlocked():
        config.batch_size = max(step, tokens // math.prod(grid) // step * step)
    return config, mesh


def make_bucket_runs(run: Run, shapes: Mapping[str, Shape], kind: Kind) -> dict[str, Run]:
    """A run for each bucket of a data set: the same state and model, clips of the bucket's shape.

    Args:
      run: of the config's shape.
      shapes: bucket to (frames, height, width) of its clips in pixels.
      kind: of the run.
    Returns:
      Bucket to its run.
    Raises:
      ValueError: a bucket's clips do not fit the model or the mesh; the sentence names the bucket.
    """
    if set(shapes.values()) == {run.model.clip_shape}:
        return dict.fromkeys(shapes, run)
    runs = {}
    for bucket, shape in shapes.items():
        try:
            config, mesh = bucket_config(run.config, run.mesh, shape, kind.grid)
            # The state stays where the config's own mesh places it.
            runs[bucket] = kind.make_run(config, mesh, run.model.null_text)._replace(
                abstract=run.abstract, shardings=run.shardings
            )
        except ValueError as error:
            raise ValueError(f"Bucket {bucket}: {error}") from error
    return runs


def resolve_length(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    sets: Mapping[str, pipeline.PackedData],
    kind: Kind,
) -> ml_collections.ConfigDict:
    """The config with train.steps as many as train.epochs are, where these are given.

    An epoch has as many steps as batches, of each bucket's size, hold all training clips once.

    Args:
      config: of the run.
      mesh: of the run.
      sets: of `bucketed_data.open_buckets`.
      kind: of the run.
    Returns:
      The config, locked.
    """
    if not config.train.epochs:
        return config
    batches = 0.0
    for folder, shape in bucket_shapes(config, sets).items():
        bucket, _ = bucket_config(config, mesh, shape, kind.grid)
        batches += sum(sets[folder].lengths["train"]) / bucket.batch_size
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.train.steps = math.ceil(config.train.epochs * batches)
    logging.info("%g epochs are %d steps.", config.train.epochs, config.train.steps)
    return config.lock()


def resolve_vocabulary(
    config: ml_collections.ConfigDict,
    sets: Mapping[str, pipeline.PackedData],
    saved: ml_collections.ConfigDict | None,
) -> ml_collections.ConfigDict:
    """The config with text.vocabulary_size as large as the captions need, where it is 0.

    Args:
      config: of the run.
      sets: of `bucketed_data.open_buckets`.
      saved: config of the checkpoints that the run resumes, whose size stays; None for a new run.
    Returns:
      The config, locked.
    """
    if configs.is_autoencoder(config) or config.text.vocabulary_size:
        return config
    words = next(iter(sets.values())).words  # of all buckets
    size = min(max(len(words), 1) + NUM_SPECIAL_IDS, MOST_WORDS)
    if saved is not None and not configs.is_autoencoder(saved):
        size = saved.text.vocabulary_size or MOST_WORDS
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.text.vocabulary_size = size
    return config.lock()


def shape_name(shape: Shape) -> str:
    """As `pack` names buckets: 480x512x512."""
    return "x".join(map(str, shape))


def make_augmentation(config: ml_collections.ConfigDict) -> Augmentation:
    """The config's augmentation of training clips."""
    return Augmentation(size=(config.data.height, config.data.width), **config.augment)


def data_metadata(sets: Mapping[str, pipeline.PackedData]) -> dict[str, Any]:
    """What identifies the clips of a run, for its checkpoints: their number, and a hash of what describes them."""
    described = [data._replace(files={}, folder="", texts=None) for data in sets.values()]
    digest = hashlib.blake2b(json.dumps(described).encode(), digest_size=8).hexdigest()
    return {"clips": sum(sum(data.lengths["train"]) for data in sets.values()), "digest": digest}


def warn_of_other_data(
    metadata: Mapping[str, Any], sets: Mapping[str, pipeline.PackedData], path: str
) -> None:
    """Logs that a run resumes with other clips than those of its checkpoint; earlier checkpoints do not know them.

    Args:
      metadata: of the checkpoint.
      sets: of `bucketed_data.open_buckets`.
      path: their folder.
    """
    then, now = metadata.get("data"), data_metadata(sets)
    if then is not None and then != now:
        logging.warning(
            "The data set in %s is another than that of the checkpoint (%d training clips then, %d now): training "
            "continues with it, and the order of clips is another.",
            path,
            then["clips"],
            now["clips"],
        )


def absolute_paths(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with absolute folders, which later verbs find from wherever they are started."""
    config = config.copy_and_resolve_references().unlock()
    config.data.path = paths.absolute_path(config.data.path)
    if "evaluation" in config:
        config.evaluation.reference = paths.absolute_path(config.evaluation.reference)
        if config.vae.name == "workdir" and not hub.is_name(config.vae.path):
            config.vae.path = paths.absolute_path(config.vae.path)
    return config.lock()


def mirrors(config: ml_collections.ConfigDict, words: Iterable[str]) -> bool:
    """Whether clips may be mirrored: data.flip is on, and no caption that a model reads forbids it.

    Args:
      config: of the run.
      words: of the captions, as `vocabulary.split_words` returns them.
    """
    if configs.is_autoencoder(config) or not config.data.flip:
        return config.data.flip
    forbidden = {word.lower() for word in config.data.no_flip_words} & set(words)
    if forbidden:
        logging.info("Clips are not mirrored: captions have the word %r.", min(forbidden))
    return not forbidden


def check_augmentation(config: ml_collections.ConfigDict, data: pipeline.PackedData) -> None:
    """Raises ValueError for an augmentation that the clips are too small, slow or short for, or that latents lack.

    Args:
      config: of the run, with the shape of the clips.
      data: of `pipeline.open_data`.
    """
    augmentation = make_augmentation(config)
    if data.latents is None:
        augment.check_augmentation(augmentation, data, config.data.frames)
        return
    found = data.latents.augment or Augmentation(augmentation.size).to_json()
    for name, wanted in augmentation.to_json().items():
        if wanted != found[name]:
            raise ValueError(
                f"augment.{name} is {wanted}, but the latents in {data.folder} were encoded with {found[name]}: "
                f"set --config.augment.{name}={found[name]}, or encode into another folder."
            )


def check_latents(config: ml_collections.ConfigDict, latents: LatentInfo | None, path: str) -> None:
    """Raises ValueError for pixels where the config wants latents, latents where it wants pixels, or other latents.

    Args:
      config: of the run, with the shape of the clips.
      latents: of the data set.
      path: its folder.
    """
    if configs.is_autoencoder(config):
        if latents is not None:
            raise ValueError(
                f"{path} holds latents, but an autoencoder is trained on pixels: set --config.data.path to what "
                "videogen_jax.pack made."
            )
        return
    name = config.vae.name
    if latents is None and name != "identity":
        raise ValueError(
            f"vae.name is {name!r}, but {path} holds pixels: run videogen_jax.encode on it and set --config.data.path "
            "to its output, or set --config.vae.name=identity and a model.patch_size to suit."
        )
    if latents is not None and name != latents.autoencoder:
        raise ValueError(
            f"vae.name is {name!r}, but {path} holds latents of {latents.autoencoder!r}: "
            f"set --config.vae.name={latents.autoencoder}."
        )
    shape = list(make_latent_space(config).latent_shape(config.data.frames)[1:])
    if latents is not None and shape != latents.shape:
        raise ValueError(
            f"The latent frames in {path} have the shape {latents.shape}, but the autoencoder of "
            f"vae.path={config.vae.path!r} makes {shape}: name the weights that encoded them, in a folder with their "
            "config.json."
        )


def checkpoint_metadata(
    config: ml_collections.ConfigDict, texts: Texts, sets: Mapping[str, pipeline.PackedData]
) -> dict[str, Any]:
    """What checkpoints keep beside the state: the config, and of the data what sampling and resuming need."""
    latents: LatentInfo | None = next(iter(sets.values())).latents
    return texts.metadata | {
        "config": config.to_dict(),
        "latents": None if latents is None else latents._asdict(),
        "data": data_metadata(sets),
    }
