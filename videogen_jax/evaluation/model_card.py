"""README.md of an exported model: the header for the Hugging Face hub, how to load it, recipe, scores, samples."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from videogen_jax import __version__, paths
from videogen_jax import config as configs
from videogen_jax.evaluation import json_report
from videogen_jax.evaluation.protocol import NAMES

EXAMPLE = "a sailing boat"  # prompt of the example where there is no better one
# Of the run's machine, not of the recipe.
LEFT_OUT = (*paths.OPTIONS, "wandb.project", "wandb.mode")


class Sample(NamedTuple):
    """A video that the card shows."""

    file: str  # in the export's folder, of characters that need no escape
    prompt: str


class Card(NamedTuple):
    """What a model card says."""

    title: str
    name: str  # for `videogen_jax.load`: a name on the hub, or a folder
    config: ml_collections.ConfigDict  # of the run
    step: int
    average: str
    dtype: str  # of the weights
    parameters: int
    metadata: Mapping[str, Any]  # of the checkpoint
    diffusers: bool = False  # whether the weights are in diffusers' layout
    license: str = ""  # as the hub names it
    hardware: str = ""
    report: Mapping[str, Any] = {}  # of evaluate
    samples: Sequence[Sample] = ()


def write_card(card: Card) -> str:
    """The text of README.md, in Markdown."""
    parts = [_header(card), f"# {_plain(card.title)}\n", _describe(card), _loading(card)]
    parts += [_recipe(card), _scores(card.report), _samples(card.samples)]
    return "\n".join(filter(None, parts))


def _header(card: Card) -> str:
    """The YAML header; its values are JSON, which YAML includes."""
    autoencoder = configs.is_autoencoder(card.config)
    tags = ["jax", "flax", "autoencoder" if autoencoder else "video-diffusion"]
    fields: dict[str, Any] = {"license": card.license} if card.license else {}
    fields |= {"library_name": "videogen_jax"}
    if not autoencoder:
        fields |= {"pipeline_tag": "text-to-video"}
    fields |= {"tags": tags + ["diffusers"] * card.diffusers}
    if card.samples:
        fields["widget"] = [
            {"text": sample.prompt, "output": {"url": sample.file}} for sample in card.samples
        ]
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---", ""])


def _describe(card: Card) -> str:
    data = card.config.data
    size = f"{data.frames} frames of {data.height}x{data.width} pixels"
    size += f" at {data.fps:g} frames per second"
    made = f"trained with videogen_jax {__version__}"
    if configs.is_autoencoder(card.config):
        return (
            f"A video autoencoder of {card.parameters:,} parameters, {made} on clips of {size}.\n"
        )
    kind = "text-to-video Diffusion Transformer"
    text = f"A {kind} of {card.parameters:,} parameters, {made}. Its videos have {size}."
    if card.config.tasks.prefix:
        text += " It continues videos, so that they may be of any length (`model.stream`)."
    return text + "\n"


def _loading(card: Card) -> str:
    if configs.is_autoencoder(card.config):
        code = f'--config.vae.name=workdir --config.vae.path="{card.name}"'
        return f"## Load\n\nIn the config of a diffusion model, for `encode` and `launch`:\n\n```sh\n{code}\n```\n"
    words = card.metadata.get("vocabulary") or [EXAMPLE]
    prompt = card.samples[0].prompt if card.samples else " ".join(words[:3])
    arguments = [json.dumps([prompt], ensure_ascii=False), "seeds=[0]"]
    if not card.config.tasks.text:
        arguments.append("first_frame=image")  # (h, w, 3) uint8
    lines = [
        "import videogen_jax",
        "",
        f"model = videogen_jax.load({json.dumps(card.name, ensure_ascii=False)})",
        f"videos = model({', '.join(arguments)})  # (1, T, H, W, 3) uint8",
        'videogen_jax.save_video("video.mp4", videos[0], model.fps)',
    ]
    text = "\n".join(["## Load", "", "```python", *lines, "```", ""])
    if card.diffusers:
        text += (
            "\nThe network alone, for PyTorch, is `diffusers.LatteTransformer3DModel.from_pretrained(..., "
            f'subfolder="transformer")`: it predicts {card.config.objective.prediction} on the noise schedule '
            f"{card.config.schedule.name}, in latents whose mean and deviation config.json has.\n"
        )
    return text


def _recipe(card: Card) -> str:
    config = card.config
    rows = {
        "training clips": _count(card.metadata.get("data", {}).get("clips")),
        "optimizer steps": f"{card.step:,} of {config.batch_size} clips",
        "weights": f"moving average `{card.average}`, {card.dtype}",
        "hardware": card.hardware,
    }
    if card.dtype != "float32":
        rows["weights"] += " (rounded: its videos are not those of the run to the bit)"
    if not configs.is_autoencoder(config):
        words, text = card.metadata.get("vocabulary"), card.metadata.get("text")
        rows["captions"] = f"{len(words)} words, learned here" if words else _name_encoder(text)
        latents = {"identity": "none: pixels", "workdir": "an autoencoder trained here, in vae/"}
        default = f"{config.vae.name}, {_place(config.vae.path)}"
        rows["latents"] = latents.get(config.vae.name, default)
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value]
    changes = [
        f"{name} = {value!r}"
        for name, value in configs.changes_of(config).items()
        if name not in LEFT_OUT
    ]
    head = ["## Recipe", "", "| | |", "| --- | --- |"]
    options = ["Options that differ from the defaults:", "", "```", *changes, "```", ""]
    return "\n".join([*head, *lines, "", *options])


def _name_encoder(text: Mapping[str, Any] | None) -> str:
    if not text:
        return ""
    name = f"embeddings of {text['encoder']}, {_place(text['path'])}"
    if pooled := text.get("pooled_encoder"):
        name += f"; pooled vector of {pooled}, {_place(text['pooled_path'])}"
    return name


def _place(path: str) -> str:
    """A name on the hub or a path, without the folders of this machine."""
    return Path(path).name if Path(path).is_absolute() else path


def _count(clips: int | None) -> str:
    return "" if clips is None else f"{clips:,}"


def _scores(report: Mapping[str, Any]) -> str:
    if not report.get("scores"):
        return ""
    lines = [
        f"| {_cell(score['name'])} | {json_report.format_score(score)} | {score.get('n', '')} | "
        f"{_cell(score.get('note', ''))} |"
        for score in report["scores"]
    ]
    # Folders of this machine are none of the reader's.
    protocol = {
        name: value
        for name, value in report.get("protocol", {}).items()
        if name not in NAMES and isinstance(value, str | int | float) and not _is_path(value)
    }
    text = ", ".join(f"{name} {value}" for name, value in protocol.items())
    head = ["## Scores", "", "| | value | N | |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *lines, "", _plain(f"Protocol: {text}."), ""])


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (Path(value).is_absolute() or "\\" in value)


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    lines = [f"- [{_plain(sample.prompt)}]({sample.file})" for sample in samples]
    return "\n".join(["## Samples", "", "<Gallery />", "", *lines, ""])


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """A text in one line, without what Markdown or HTML would read as markup."""
    text = " ".join(str(text).split())
    for character in "\\[]<>":
        text = text.replace(character, f"\\{character}")
    return text
