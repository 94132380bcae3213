r"""Writes a trained model as a folder to hand on: safetensors, config.json and a model card.

    python -m videogen_jax.export --workdir=runs/quickstart --output=exports/quickstart
    python -m videogen_jax.export --workdir=runs/quickstart --output=exports/quickstart \
        --samples=runs/quickstart/generated --report=runs/quickstart/generated --push_to_hub=owner/name

`videogen_jax.load` opens the folder, or its name on the hub; so do `sample --workdir` and `init.layout=export`. The
videos are those of the run to the bit, unless --dtype=bfloat16 rounds the weights. A run of an autoencoder is
exported alone, for `vae.name=workdir`; that of a diffusion model takes one that was trained here along. What LoRA added
is in the weights. The folder appears when it is complete.

With --layout=diffusers the weights are those of a `LatteTransformer3DModel`, for models whose architecture is Latte's.
Without --workdir, --push_to_hub uploads what is in --output.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
from absl import flags, logging

from videogen_jax import command, paths
from videogen_jax import config as configs
from videogen_jax.data import json_files, output_folder
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.evaluation import json_report, model_card
from videogen_jax.evaluation.model_card import Card, Sample
from videogen_jax.generate import sample_folder
from videogen_jax.generate.from_checkpoint import restore_average
from videogen_jax.models import hub, latte_export
from videogen_jax.parallel import mesh as meshes
from videogen_jax.run import autoencoder_model, checkpoint, export_folder, saved_config
from videogen_jax.run import model as run_model
from videogen_jax.run.merged_lora import merge_lora
from videogen_jax.run.text_conditioning import MODEL_ENCODERS, restore_null

LAYOUTS = ("native", "diffusers")
SAMPLES = "samples"  # folder of the videos that the card shows
VIDEO_SUFFIXES = (".mp4", ".gif", ".webm")
MOST_SAMPLES = 8  # of a folder
# Options with paths of published weights, and the flags that say where others find these.
WEIGHTS_FLAGS = {
    "vae.path": "vae_path",
    "text.path": "text_path",
    "text.pooled_path": "pooled_path",
}


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags; not at import time, so that commands can import one another."""

    def define(kind: str, *arguments: Any, **options: Any) -> None:
        getattr(flags, f"DEFINE_{kind}")(*arguments, flag_values=flag_values, **options)

    define("string", "workdir", None, "Folder of the run.")
    define("string", "output", None, "Folder to write; new or empty.")
    define("integer", "step", None, "Checkpoint; the newest by default.", lower_bound=0)
    define("string", "ema", None, "Moving average, e.g. decay_0.999; the first by default.")
    define("float", "ema_width", None, "Relative width of a power average, made of snapshots.")
    define("enum", "dtype", "float32", tuple(export_folder.DTYPES), "Of the weights.")
    define("enum", "layout", "native", LAYOUTS, "Of the weights.")
    define("multi_string", "samples", [], "Videos for the card: a folder of `sample`, or files.")
    define("string", "report", None, "evaluation.json, or its folder, for the card's scores.")
    define("string", "license", "", "For the card, as the hub names it: mit, apache-2.0, ...")
    define("string", "hardware", "", "For the card: what the model was trained on.")
    define("string", "vae_path", None, "Where others find the autoencoder, in place of vae.path.")
    define("string", "text_path", None, "Where others find the text encoder, likewise.")
    define("string", "pooled_path", None, "Likewise, in place of text.pooled_path.")
    define("string", "push_to_hub", None, "Upload to this repository, owner/name.")
    define("boolean", "private", False, "Make a new repository on the hub private.")
    command.want_finite("ema_width", flag_values=flag_values)


class Trained(NamedTuple):
    """A moving average of a run, on one device."""

    model: run_model.Model
    params: Any
    step: int
    average: str
    metadata: dict[str, Any]
    run_config: ml_collections.ConfigDict  # as it was trained
    config: ml_collections.ConfigDict  # as it samples: without LoRA, which is in `params`


def main(arguments: list[str]) -> None:
    """Runs the verb."""
    command.refuse(arguments)
    command.log_progress()
    values = flags.FLAGS
    if not values.output:
        raise ValueError("--output is missing: name the folder to write.")
    if values.push_to_hub is not None:
        hub.check_upload(values.push_to_hub)
    output = Path(values.output)
    if values.workdir is not None:
        write_export(values, output)
        command.say(f"Exported {values.workdir} to {output}.")
    elif values.push_to_hub is None:
        raise ValueError("--workdir is missing: name the folder of the run to export.")
    if values.push_to_hub is not None:
        export = export_folder.open_export(str(output.resolve()))
        message = f"Step {export.step}, exported by videogen_jax"
        address = hub.upload_folder(output, values.push_to_hub, values.private, message)
        command.say(f"Uploaded {output} to {address}.")


def write_export(values: Any, output: Path) -> None:
    """Writes the folder; it appears when it is complete.

    Args:
      values: parsed flags.
      output: of the folder.
    Raises:
      ValueError: a flag, the run or the folder does not fit; the sentence says how.
      OSError: a file cannot be read or written.
    """
    check_flags(values, output)
    report = json_report.read_report(values.report) if values.report else {}
    samples = find_samples(values.samples)
    trained = read_trained(Path(values.workdir), values.step, values.ema, values.ema_width)
    autoencoder = configs.is_autoencoder(trained.model.config)
    transformer = describe_transformer(trained) if values.layout == "diffusers" else None
    inside = None if autoencoder else read_autoencoder(trained)
    weights_at = {name: getattr(values, flag) for name, flag in WEIGHTS_FLAGS.items()}
    trained = make_portable(trained, weights_at)
    place = output.resolve()
    output_folder.make_output_folder(place.parent, "--output")
    unfinished = place.with_name(f".{place.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a call that was killed
    try:
        unfinished.mkdir()
        write_weights(unfinished, trained, values.dtype, transformer)
        if inside is not None:
            folder = unfinished / export_folder.VAE
            folder.mkdir()
            # In float32: the latents were encoded by these very weights.
            write_weights(folder, make_portable(inside), "float32")
        card = Card(
            title=(values.push_to_hub or place.name).rpartition("/")[2],
            name=values.push_to_hub or place.name,
            config=trained.run_config,
            step=trained.step,
            average=trained.average,
            dtype=values.dtype,
            parameters=sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
            metadata=trained.metadata,
            diffusers=transformer is not None,
            license=values.license,
            hardware=values.hardware,
            report=report,
            samples=copy_samples(samples, unfinished),
        )
        (unfinished / "README.md").write_text(model_card.write_card(card), encoding="utf-8")
        unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_flags(values: Any, output: Path) -> None:
    """Checks what can be checked before anything is read.

    Raises:
      ValueError: names the flag.
    """
    if values.ema is not None and values.ema_width is not None:
        raise ValueError(
            "--ema names an average and --ema_width reconstructs one: give one of the two."
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"--output={output} is there already and not an empty folder: name another one, or remove it first."
        )
    if not re.fullmatch(r"[\w.-]*", values.license):
        raise ValueError(
            f"--license={values.license!r} is no identifier: write it as the hub does, like mit or apache-2.0."
        )
    workdir = Path(values.workdir)
    if export_folder.is_export(workdir):
        raise ValueError(
            f"--workdir={workdir} is an export, or a name on the hub, and not the folder of a run: copy the folder, "
            "or name the run that it came from."
        )


def read_trained(
    workdir: Path, step: int | None = None, ema: str | None = None, ema_width: float | None = None
) -> Trained:
    """Reads a moving average of a run of either kind, without what else sampling would need.

    Args:
      workdir: of the run.
      step: of the checkpoint; by default the newest.
      ema: name of the moving average; by default the first one.
      ema_width: relative width of a power-function average to reconstruct instead.
    Raises:
      ValueError: there is no checkpoint or average, or it is another model's.
      FileNotFoundError: there is no run.
    """
    config = saved_config.read_config(workdir)
    mesh = meshes.make_mesh(devices=jax.devices()[:1])

    def read(step: int, metadata: dict[str, Any]) -> Trained:
        if configs.is_autoencoder(config):
            model = autoencoder_model.make_model(config, mesh)
            params = restore_average(model, workdir, step, ema, ema_width)
        else:
            model = run_model.make_model(config, mesh, restore_null(config.text, metadata))
            params = restore_average(model, workdir, step, ema, ema_width)
            model, params = merge_lora(model, params)
        average = (ema or model.ema_names[0]) if ema_width is None else f"width_{ema_width:g}"
        return Trained(model, params, step, average, metadata, config, model.config)

    return checkpoint.read_newest(workdir, step, read)


def read_autoencoder(trained: Trained) -> Trained | None:
    """The autoencoder of a diffusion model, where it was trained here; None for any other.

    Raises:
      ValueError: its weights are not those that encoded the data set.
      OSError: they cannot be read.
    """
    space, latents = trained.model.latent_space, trained.metadata.get("latents")
    if space.name != "workdir":
        return None
    _, params = space.load(LatentInfo(**latents))
    if not export_folder.is_export(space.path):
        return read_trained(Path(space.path))
    export = export_folder.open_export(space.path)
    model = autoencoder_model.make_model(export.config, trained.model.mesh)
    return Trained(model, params, export.step, export.weights, {}, export.config, export.config)


def describe_transformer(trained: Trained) -> dict[str, Any]:
    """config.json of diffusers' class.

    Raises:
      ValueError: the model's architecture is no class's.
    """
    model = trained.model
    if configs.is_autoencoder(model.config):
        raise ValueError(
            "--layout=diffusers is of diffusion models: export an autoencoder with --layout=native."
        )
    fields = model.config.model.to_dict()
    fields["text_encoder"] = MODEL_ENCODERS[model.config.text.encoder]
    text = trained.metadata.get("text")
    width = text["width"] if text else 0
    return latte_export.describe(fields, model.token_grid, model.video_shape[-1], width)


def make_portable(trained: Trained, weights_at: Mapping[str, str | None] | None = None) -> Trained:
    """Takes the paths of this machine out of configs and metadata; warns of weights that others will not have.

    Args:
      trained: the model.
      weights_at: option of WEIGHTS_FLAGS -> where others find these weights; None to keep the option.
    Returns:
      The model, its configs locked.
    Raises:
      ValueError: a place is given for weights that the run does not read.
    """
    given = {name: place for name, place in (weights_at or {}).items() if place is not None}
    options = dict(configs.flatten(trained.config.to_dict()))
    read = {name: options[name] for name in WEIGHTS_FLAGS if options.get(name)}
    if options.get("vae.name") == "workdir":  # which is exported too
        del read["vae.path"]
    for name in given:
        if name not in read:
            raise ValueError(
                f"--{WEIGHTS_FLAGS[name]} is given, but this run reads no weights by {name} that others have to find: "
                "leave it out."
            )
    for name, path in read.items():
        if name not in given and not hub.is_name(path):
            logging.warning(
                "%s=%s is a path of this machine: tell others by --%s=owner/name where they find these weights.",
                *(name, path, WEIGHTS_FLAGS[name]),
            )
    config, run_config = (
        portable_config(one, given) for one in (trained.config, trained.run_config)
    )
    metadata = trained.metadata
    if text := metadata.get("text"):
        places = {"path": config.text.path, "pooled_path": config.text.pooled_path}
        metadata = metadata | {"text": text | places}
    return trained._replace(config=config, run_config=run_config, metadata=metadata)


def portable_config(
    config: ml_collections.ConfigDict, weights_at: Mapping[str, str]
) -> ml_collections.ConfigDict:
    """A copy of a config, locked: of data and the like, which sampling does not read, the last part of the path.

    Args:
      config: of the run.
      weights_at: option of WEIGHTS_FLAGS -> path of these weights; by default as it is.
    """
    config = config.copy_and_resolve_references().unlock()
    for name in paths.OPTIONS:
        section, key = name.split(".")
        if section not in config:
            continue
        path = config[section][key]
        if name in WEIGHTS_FLAGS:
            config[section][key] = weights_at.get(name, path)
        elif Path(path).is_absolute():
            config[section][key] = Path(path).name
    if "vae" in config and config.vae.name == "workdir":
        config.vae.path = export_folder.VAE
    return config.lock()


def write_weights(
    folder: Path,
    trained: Trained,
    dtype: str,
    transformer: dict[str, Any] | None = None,
) -> None:
    """Writes config.json and the weights into an empty folder; see `export_folder.write_export`."""
    export_folder.write_export(
        folder,
        config=trained.config,
        params=trained.params,
        step=trained.step,
        average=trained.average,
        metadata=trained.metadata,
        dtype=dtype,
        transformer=transformer,
    )


def find_samples(given: Sequence[str]) -> list[tuple[Path, str]]:
    """The videos that the card shows, with their prompts.

    Args:
      given: folders, of which the first videos are taken, one of each prompt, and files. A folder that `sample` wrote
        has their prompts in samples.json; the prompt of any other is its name.
    Returns:
      (path, prompt) of each.
    Raises:
      ValueError: a file is no video, or a folder has none.
      FileNotFoundError: there is no such file.
    """
    found = []
    for path in map(Path, given):
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix in VIDEO_SUFFIXES)
            if not files:
                raise ValueError(f"--samples={path} has no {', '.join(VIDEO_SUFFIXES)} file.")
            prompts = read_prompts(path)
            by_prompt = {prompts.get(file.name, file.name): file for file in reversed(files)}
            files = sorted(by_prompt.values())[:MOST_SAMPLES]
        elif not path.is_file():
            raise FileNotFoundError(f"There is no {path}: name videos or a folder in --samples.")
        for file in files:
            if file.suffix not in VIDEO_SUFFIXES:
                raise ValueError(
                    f"--samples={file} is no video: name files of {', '.join(VIDEO_SUFFIXES)}."
                )
            prompts = read_prompts(file.parent)
            found.append((file, prompts.get(file.name, file.stem.replace("_", " "))))
    return found


def read_prompts(folder: Path) -> dict[str, str]:
    """File name to prompt of the videos of a folder, by its samples.json; empty without one.

    Raises:
      ValueError: samples.json is damaged.
    """
    path = folder / sample_folder.LISTING
    if not path.is_file():
        return {}
    listing = json_files.read(path, sample_folder.LISTING_FIELDS, "sample the videos again.")
    return {video["file"]: video["prompt"] for video in listing["videos"]}


def copy_samples(samples: Sequence[tuple[Path, str]], folder: Path) -> list[Sample]:
    """Copies videos into the export, and numbers them: a name may have characters that an address must not."""
    copied = []
    for i, (path, prompt) in enumerate(samples):
        name = f"{SAMPLES}/{i:02d}{path.suffix}"
        (folder / SAMPLES).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
        copied.append(Sample(name, prompt))
    return copied


if __name__ == "__main__":
    define_flags()
    command.start("export", main)
