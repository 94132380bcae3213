"""What is looked at before a run begins: a config, its data set and the checkpoint that it goes on from."""

import json
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import logging

from videogen_jax.data import augment, bucketed_data, pipeline
from videogen_jax.data.augment import Augmentation
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.parallel import mesh as meshes
from videogen_jax.run import model as run_model
from videogen_jax.run import text_conditioning
from videogen_jax.run.saved_config import add_later_lines
from videogen_jax.run.trained_autoencoder import SECTION

NUMBERS = (
    *("batch_size", "data.frames", "data.shuffle_window", "data.threads"),
    *("train.steps", "train.accumulation", "train.log_every"),
    *(f"mesh.{axis}" for axis in meshes.AXES),
    *("checkpoint.every", "checkpoint.keep", "sample.every", "profile.steps"),
)
DIFFUSION_NUMBERS = (
    *("text.length", "memory.pieces", "memory.unroll", "sample.batch_size", "prefix.chunk"),
    *("evaluation.fvd_clips", "evaluation.fvd_repeat"),
)
AUTOENCODER_NUMBERS = ("perceptual.frames",)

Shape = tuple[int, int, int]  # (frames, height, width) in pixels


def is_autoencoder(config: ml_collections.ConfigDict) -> bool:
    """Whether a config describes an autoencoder that is to be trained, and not a diffusion model."""
    return SECTION in config


def check_data(config: ml_collections.ConfigDict, sets: Mapping[str, pipeline.PackedData]) -> None:
    """Refuses clips of another size or rate than the config's.

    Args:
      config: of the run.
      sets: of `bucketed_data.open_buckets`.
    Raises:
      ValueError: names the line of the config and the packed value.
    """
    bucketed = bucketed_data.is_bucketed(config.data.path)
    shapes = bucket_shapes(config, sets)
    own = run_model.clip_shape(config)
    if own not in shapes.values():
        raise ValueError(
            f"data.frames, height and width are {shape_name(own)}, but the buckets in {config.data.path} are "
            f"{', '.join(map(shape_name, shapes.values()))}: set them to one of these, which samples then have."
        )
    if not is_autoencoder(config):
        check_told(config)
    for folder, data in sets.items():
        # Windows may be cut out of pixels: check_augmentation looks at their size.
        for name in ("height", "width", "fps") if data.latents and not bucketed else ("fps",):
            wanted, packed = config.data[name], getattr(data, name)
            if wanted != packed:
                raise ValueError(
                    f"data.{name} is {wanted}, but the clips in {folder} were packed with {packed}: "
                    f"set --config.data.{name}={packed}, or pack again."
                )
        bucket = run_model.with_shape(config, shapes[folder])
        check_latents(bucket, data.latents, folder)
        check_augmentation(bucket, data)


def bucket_shapes(
    config: ml_collections.ConfigDict, sets: Mapping[str, pipeline.PackedData]
) -> dict[str, Shape]:
    """The clips' shape in each bucket; the config's own where the data set is a plain one.

    Args:
      config: of the run.
      sets: of `bucketed_data.open_buckets`.
    Returns:
      Folder of the bucket to the shape.
    """
    if not bucketed_data.is_bucketed(config.data.path):
        return dict.fromkeys(sets, run_model.clip_shape(config))
    return {folder: (data.frames, data.height, data.width) for folder, data in sets.items()}


def shape_name(shape: Shape) -> str:
    """As `pack` names buckets: 480x512x512."""
    return "x".join(map(str, shape))


def make_augmentation(config: ml_collections.ConfigDict) -> Augmentation:
    """What the config does to training clips of its shape."""
    return Augmentation(size=(config.data.height, config.data.width), **config.augment)


def check_told(config: ml_collections.ConfigDict) -> None:
    """Refuses speeds that the model is not told of; warns of a speed that it is asked for but never shown.

    Raises:
      ValueError: the micro-condition is missing.
    """
    low, high = config.augment.fps_min, config.augment.fps_max
    if low < high and "fps" not in config.model.micro_conditions:
        raise ValueError(
            f"augment.fps_min and fps_max take clips at {low} to {high} frames per second, but the model is not told "
            "which: add 'fps' to model.micro_conditions, or make them equal."
        )
    if 0 < high < config.data.fps:
        logging.warning(
            "Training sees at most %g frames per second, but validation and samples have data.fps of %g: "
            "raise --config.augment.fps_max.",
            high,
            config.data.fps,
        )


def check_augmentation(config: ml_collections.ConfigDict, data: pipeline.PackedData) -> None:
    """Refuses an augmentation that pixels cannot serve, or with which latents were not encoded.

    Args:
      config: of the run, with the shape of the clips.
      data: of `pipeline.open_data`.
    Raises:
      ValueError: names the line of the config.
    """
    augmentation = make_augmentation(config)
    if data.latents is None:
        augment.check_augmentation(augmentation, data, config.data.frames)
        return
    found = data.latents.augment or Augmentation(augmentation.size).note()
    for name, wanted in augmentation.note().items():
        if wanted != found[name]:
            raise ValueError(
                f"augment.{name} is {wanted}, but the latents in {data.folder} were encoded with {found[name]}: "
                f"set --config.augment.{name}={found[name]}, or encode into another folder."
            )


def check_latents(config: ml_collections.ConfigDict, latents: LatentInfo | None, path: str) -> None:
    """Refuses a data set of pixels where the config wants latents, of latents where it wants pixels, or of others.

    Args:
      config: of the run, with the shape of the clips.
      latents: of the data set.
      path: its folder.
    Raises:
      ValueError: says which it is.
    """
    if is_autoencoder(config):
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
    shape = list(run_model.video_shape(config)[1:])
    if latents is not None and shape != latents.shape:
        raise ValueError(
            f"The latent frames in {path} have the shape {latents.shape}, but the autoencoder of "
            f"vae.path={config.vae.path!r} makes {shape}: name the weights that encoded them, in a folder with their "
            "config.json."
        )


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Refuses counts below 1.

    Raises:
      ValueError: names the line of the config.
    """
    names = AUTOENCODER_NUMBERS if is_autoencoder(config) else DIFFUSION_NUMBERS
    flat = config.to_dict()
    for name in NUMBERS + names:
        value: Any = flat
        for part in name.split("."):
            value = value[part]
        if value < 1:
            raise ValueError(f"{name} is {value}: give at least 1.")


def check_same_run(
    metadata: dict[str, Any],
    config: ml_collections.ConfigDict,
    own_texts: text_conditioning.Texts,
    latents: LatentInfo | None,
) -> None:
    """Refuses to go on with words or a setup that give the same parameters another meaning.

    Args:
      metadata: saved with the checkpoint.
      config: of the run that goes on.
      own_texts: of `text_conditioning.open_texts`.
      latents: of its data.
    Raises:
      ValueError: lists what differs.
    """

    def meaning(config: dict[str, Any]) -> dict[str, Any]:
        if SECTION in config:
            return {f"{SECTION}.{key}": value for key, value in config[SECTION].items()}
        model = {f"model.{key}": value for key, value in config["model"].items()}
        schedule = {f"schedule.{key}": value for key, value in config["schedule"].items()}
        rest = {"objective.prediction": config["objective"]["prediction"]}
        if config["tasks"]["prefix"]:
            rest["prefix.lengths"] = config["prefix"]["lengths"]
        return model | schedule | rest | {"text.length": config["text"]["length"]}

    ours = json.loads(json.dumps(meaning(config.to_dict())))  # tuples become lists, as there
    before = metadata["config"]
    if SECTION not in before:
        add_later_lines(before)
    theirs = meaning(before)
    differences = [
        f"{name} is {ours[name]} instead of {theirs.get(name)}"
        for name in ours
        if ours[name] != theirs.get(name)
    ]
    theirs_latents = metadata.get("latents")
    if difference := text_conditioning.find_difference(own_texts, metadata):
        differences.append(difference)
    # Through LatentInfo: fields that came later have defaults.
    if latents != (theirs_latents and LatentInfo(**theirs_latents)):
        differences.append("the latents were encoded or measured otherwise")
    if differences:
        raise ValueError(
            f"The checkpoint was trained otherwise: {'; '.join(differences)}. "
            "Set them back, or use another --workdir."
        )


def note_latents(latents: LatentInfo | None) -> dict[str, Any] | None:
    """As it is saved with checkpoints, for sampling."""
    return None if latents is None else latents._asdict()
