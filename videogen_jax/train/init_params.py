"""The initial parameters of a run: random, published weights, or those of another run or of an export of one.

A run with more conditioning than the one it starts from has new inputs: the channels of known frames, and
micro-conditions. They start at zero, so that its first output is the other one's. A run whose captions have other words
keeps the embeddings of the words that both have. A run of longer patches in time than the other's, which trained on
pictures, reads the mean of a patch's frames and predicts each of them as the other would. LoRA's
updates start at zero.
"""

import functools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from videogen_jax import config as configs
from videogen_jax.data.vocabulary import Vocabulary
from videogen_jax.models import weights
from videogen_jax.models.lora import is_adapter
from videogen_jax.models.parameter_paths import combine, list_paths, split
from videogen_jax.parallel.sharding import path_name
from videogen_jax.run import checkpoint, export_folder, saved_config
from videogen_jax.run.frozen_params import find_frozen
from videogen_jax.run.merged_lora import merge_lora, without_lora
from videogen_jax.run.model import Model, make_lora, make_model
from videogen_jax.run.text_conditioning import Texts, find_difference

# init.layout of another run, and of an export of one; the others are of models/weight_layouts.py
RUN, EXPORT = "run", "export"
FIRST_LAYER = "patch_embed/kernel"
WORDS = ("caption_encoder/words/embedding", "caption_encoder/importance")  # a row for each word
# Axis of the layers' parameters that has the frames of a patch, outermost.
FRAMES_IN = {FIRST_LAYER: 0, "detailer/enter/kernel": 0}
FRAMES_OUT = {
    "unembed/kernel": 1,
    "unembed/bias": 0,
    "detailer/leave/kernel": 1,
    "detailer/leave/bias": 0,
}
SHOWN = 10  # words or paths in a sentence
# Options of config.model that leave the parameters what they are, or add inputs or the detailer.
MAY_DIFFER = (
    "conditioning",
    "micro_conditions",
    "causal",
    "time_cycle",
    "detailer_width",
    "detailer_blocks",
)


def init_params(model: Model, texts: Texts) -> Any:
    """The parameters that config.init names.

    Args:
      model: of the run that starts.
      texts: of its captions.
    Returns:
      A tree of arrays, on the host or laid out on the mesh.
    Raises:
      ValueError: weights or run do not fit; the sentence says what.
      FileNotFoundError: there are none.
    """
    frozen = find_frozen(model.config, model.abstract_params)
    if make_lora(model.config) is None:
        return read_params(model, texts, frozen)
    config = without_lora(model.config)
    base = make_model(config, model.mesh, model.null_text, model.token_grid)
    return add_lora(model, read_params(base, texts, frozen))


def read_params(model: Model, texts: Texts, frozen: Collection[str]) -> Any:
    """As `init_params`, of a model without LoRA; `frozen` are the paths of what the run does not train."""
    path, layout = model.config.init.path, model.config.init.layout
    if layout in (RUN, EXPORT):
        return start_from_run(model, path, texts, layout, frozen)
    params = jax.jit(model.init_params, out_shardings=model.param_shardings)()
    loaded = weights.load_weights(path, layout, params)
    pairs = zip(list_paths(params), jax.tree.leaves(params), jax.tree.leaves(loaded), strict=True)
    warn_of_frozen({name for name, before, after in pairs if before is after}, frozen)
    return loaded


def add_lora(model: Model, params: Any) -> Any:
    """The parameters of a model without LoRA, with new updates beside them, which are zero at first."""
    updates = [path for path in list_paths(model.abstract_params) if is_adapter(path)]
    _, shardings = split(model.param_shardings, updates)
    fresh = jax.jit(lambda: split(model.init_params(), updates)[1], out_shardings=shardings)()
    return combine(params, fresh)


class OtherRun(NamedTuple):
    """What a run starts from: the newest moving average of another run, LoRA's updates added into it."""

    model: Model
    params: Any  # laid out on the mesh
    words: list[str]  # of its captions; none with a pretrained text encoder
    step: int


def start_from_run(
    model: Model, path: str, texts: Texts, layout: str, frozen: Collection[str] = ()
) -> Any:
    """The newest EMA of another run, with zeros for inputs that it lacks and fresh embeddings for words that it lacks.

    Args:
      model: of the run that starts.
      path: workdir of the other run, or an export of it.
      texts: of the run that starts.
      layout: RUN or EXPORT.
      frozen: paths of the parameters that it does not train; warns of those that are new.
    Returns:
      Its parameters, laid out on the mesh.
    Raises:
      ValueError: the other run has another model, or another text encoder.
      FileNotFoundError: there is no run.
    """
    other = read_other_run(model, path, texts, layout)
    words = texts.metadata["vocabulary"]
    started, new = carry_params(model, other, words, path)
    logging.info("Starting from step %d of %s.", other.step, path)
    if words != other.words:
        logging.info("%s", describe_words(words, other.words))
    warn_of_frozen(new, frozen)
    return started


def read_other_run(model: Model, path: str, texts: Texts, layout: str) -> OtherRun:
    """Reads the run that another starts from; arguments and errors are those of `start_from_run`."""
    workdir = Path(path)
    export = export_folder.open_export(path) if layout == EXPORT else None
    config = saved_config.read_config(workdir) if export is None else export.config
    if configs.is_autoencoder(config):
        raise ValueError(
            f"init.path={path} is the {layout} of an autoencoder: name that of a diffusion model."
        )
    # Captions are embedded by the same encoder, see `check_texts`; its files may not be where the other run had them.
    same = config.text.encoder == model.config.text.encoder
    other = make_model(config, model.mesh, model.null_text if same else None, model.token_grid)
    check_model(model, other, workdir)

    def check_texts(metadata: dict[str, Any]) -> list[str]:
        ours, theirs = texts.metadata["vocabulary"], metadata["vocabulary"]
        if not (ours and theirs) and (difference := find_difference(texts, metadata)):
            raise ValueError(f"init.path={path} cannot be started from: {difference}.")
        return theirs

    def read(step: int, metadata: dict[str, Any]) -> tuple[Any, int, list[str]]:
        words = check_texts(metadata)
        with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
            name = other.ema_names[0]
            return *checkpoint.restore_ema(manager, other.abstract_params, name, step), words

    if export is None:
        params, step, words = checkpoint.read_newest(workdir, None, read)
    else:
        words, step = check_texts(export.metadata), export.step
        params = export.put_params(other)
    return OtherRun(*merge_lora(other, params, model.token_grid), words, step)


def carry_params(
    model: Model, other: OtherRun, words: list[str], path: str
) -> tuple[Any, set[str]]:
    """The other run's parameters in the shapes of this one's.

    Args:
      model: of the run that starts.
      other: that it starts from.
      words: of its captions.
      path: of the other run, for errors.
    Returns:
      (the parameters, laid out on the mesh; paths of those that are new in this run, wholly or in part).
    Raises:
      ValueError: the models have other parameters.
    """
    channels = model.video_shape[-1]
    sizes = [one.conditioning.input_channels(channels) for one in (other.model, model)]
    leaves = jax.tree_util.tree_leaves_with_path(other.params)
    found = {path_name(place): leaf for place, leaf in leaves}
    params = jax.jit(model.init_params, out_shardings=model.param_shardings)()
    embedders = [f"{name}_embed" for name in model.conditioning.micro_conditions]
    frames = model.patch_frames // other.model.patch_frames
    taken, new = set(), set()

    def start(place: Any, leaf: Any) -> Any:
        name = path_name(place)
        if name not in found:
            new.add(name)
            if name.split("/")[0] in embedders:
                return jnp.zeros_like(leaf) if "/out/" in name else leaf
            if name.startswith("detailer/"):
                return leaf  # its output is zero at first
            raise ValueError(
                f"init.path={path} has no {name}: its model is another; set the same config.model."
            )
        taken.add(name)
        value = found[name]
        if name in WORDS and (words != other.words or value.shape != leaf.shape):
            value = carry_words(value, leaf, words, other.words)
            new.update([name] if set(words) - set(other.words) else [])
        if name == FIRST_LAYER and sizes[0] < sizes[1]:
            wider = functools.partial(widen, channels=sizes[0], wanted=sizes[1], video=channels)
            value = jax.jit(wider, out_shardings=leaf.sharding)(value)
            new.add(name)
        if frames > 1 and name in FRAMES_IN | FRAMES_OUT:
            longer = functools.partial(inflate, name=name, frames=frames)
            value = jax.jit(longer, out_shardings=leaf.sharding)(value)
            new.add(name)  # the frames of a patch have yet to differ
        if value.shape != leaf.shape:
            raise ValueError(
                f"{name} is {value.shape} in init.path={path} and {leaf.shape} here: its model is another; set the "
                "same config.model."
            )
        return value

    started = jax.tree_util.tree_map_with_path(start, params)
    if unread := sorted(set(found) - taken):
        raise ValueError(
            f"init.path={path} has {unread[0]}, which this model lacks: set the same config.model."
        )
    return started, new


def warn_of_frozen(new: set[str], frozen: Collection[str]) -> None:
    """Warns of parameters that start at random or at zero, wholly or in part, and are not trained.

    Args:
      new: paths of the former.
      frozen: paths of the latter.
    """
    if stuck := sorted(new.intersection(frozen)):
        more = f" and {len(stuck) - SHOWN} more" if len(stuck) > SHOWN else ""
        logging.warning(
            "%s%s: new in this run, and frozen, so that what is new in them is never learned: name them in "
            "--config.train.lora.full, or take them out of train.frozen.",
            *(", ".join(stuck[:SHOWN]), more),
        )


def carry_words(
    theirs: jax.Array, fresh: jax.Array, words: Sequence[str], before: Sequence[str]
) -> jax.Array:
    """Rows of words for another vocabulary: those of words that both have, and fresh ones.

    Args:
      theirs: (W, ...), embeddings of the run that this one starts from.
      fresh: (V, ...), at random.
      words: of this run, at most V - 3.
      before: of the other run.
    Returns:
      (V, ...), laid out as `fresh`.
    """
    sources = Vocabulary.from_list(words).find_sources(Vocabulary.from_list(before))
    # Rows behind the last word are of no word, and stay fresh.
    sources = np.pad(sources, (0, len(fresh) - len(sources)), constant_values=-1)

    def carry(theirs: jax.Array, fresh: jax.Array) -> jax.Array:
        common = (sources >= 0).reshape(-1, *[1] * (fresh.ndim - 1))
        return jnp.where(common, theirs[np.maximum(sources, 0)], fresh)

    return jax.jit(carry, out_shardings=fresh.sharding)(theirs, fresh)


def describe_words(words: Sequence[str], before: Sequence[str]) -> str:
    """A sentence on which words keep their embedding, which are new, and which are no longer there."""
    new = [word for word in words if word not in set(before)]
    gone = [word for word in before if word not in set(words)]

    def name(some: list[str]) -> str:
        shown = ", ".join(map(repr, some[:SHOWN])) + (", ..." if len(some) > SHOWN else "")
        return f" ({shown})" if some else ""

    return (
        f"Of {len(words)} words {len(words) - len(new)} keep their embedding, {len(new)} are new and start at random"
        f"{name(new)}; {len(gone)} of the other run are not in these captions{name(gone)}."
    )


def check_model(model: Model, other: Model, workdir: Path) -> None:
    """Raises ValueError where another run's parameters mean something else; warns where its objective is another.

    Args:
      model: of the run that starts.
      other: of the run that it starts from.
      workdir: of that run.
    """

    def meaning(one: Model) -> dict[str, Any]:
        options = one.config.model
        lines = {f"model.{name}": options[name] for name in options if name not in MAY_DIFFER}
        return lines | {"vae.name": one.config.vae.name}

    ours, theirs = meaning(model), meaning(other)
    size, before = ours["model.patch_size"], theirs["model.patch_size"]
    if before[0] == 1 and size[1:] == before[1:]:  # see `inflate`
        theirs["model.patch_size"] = size
    for name in ours:
        if ours[name] != theirs.get(name):
            raise ValueError(
                f"{name} is {ours[name]!r}, but {theirs.get(name)!r} in init.path={workdir}: its model is another; set "
                f"--config.{name} to the same."
            )
    wanted, given = model.conditioning, other.conditioning
    if wanted.input_channels(1) < given.input_channels(1):
        raise ValueError(
            f"model.conditioning is {wanted.kind!r}, but {given.kind!r} in init.path={workdir}: a run keeps the "
            f"conditioning of the one that it starts from; set --config.model.conditioning={given.kind}."
        )
    for section, name in (("objective", "prediction"), ("schedule", "name")):
        ours, theirs = model.config[section][name], other.config[section][name]
        if ours != theirs:
            logging.warning(
                "%s was trained with %s.%s=%s, and this run has %s: its first steps adapt to that.",
                *(workdir, section, name, theirs, ours),
            )


def widen(kernel: jax.Array, channels: int, wanted: int, video: int) -> jax.Array:
    """Zeros for channels that are new: they come right behind the video's own, at each place of a patch.

    Args:
      kernel: (pt ph pw channels, D).
      channels: that there are.
      wanted: more.
      video: those of the video.
    Returns:
      (pt ph pw wanted, D).
    """
    kernel = kernel.reshape(-1, channels, kernel.shape[-1])
    zeros = jnp.zeros((len(kernel), wanted - channels, kernel.shape[-1]), kernel.dtype)
    kernel = jnp.concatenate([kernel[:, :video], zeros, kernel[:, video:]], axis=1)
    return kernel.reshape(-1, kernel.shape[-1])


def inflate(value: jax.Array, name: str, frames: int) -> jax.Array:
    """A parameter of the first or last layers for patches of several frames, from that for patches of one.

    What reads a patch gets the mean of its frames, what predicts one the same for each of them: on frames that are all
    alike the model's output is the other's.

    Args:
      value: of a name in FRAMES_IN or FRAMES_OUT.
      name: of the parameter.
      frames: of a patch.
    Returns:
      `frames` times as long along the name's axis.
    Source: inflation of filters, I3D, arXiv:1705.07750, section 2.4.1.
    """
    if name in FRAMES_IN:
        return jnp.concatenate([value / frames] * frames, axis=FRAMES_IN[name])
    return jnp.concatenate([value] * frames, axis=FRAMES_OUT[name])
