"""Writes captions for the videos and images of a folder that have none, with a model that sees them.

    python -m videogen_jax.caption --input=FOLDER --model=HuggingFaceTB/SmolVLM2-2.2B-Instruct

writes name.txt beside each name.mp4 (or another suffix that pack reads) without one; then pack takes the folder.
--model is a folder, or a name on the Hugging Face hub, of a model for images and text that transformers has
(docs/captioning.md). Only its safetensors are read, and no code that comes with it is executed. This verb needs
pip install 'videogen-jax[caption]'.

- A model that sees videos gets --frames frames, evenly spaced in time; one that sees images gets them as images, or the
  middle one, where it takes just one.
- Captions that are there stay as they are. --overwrite replaces those that this command wrote with another model,
  prompt, or number of frames or tokens, and that nobody has changed since: FOLDER/caption_log.jsonl lists them.
- A call that was stopped resumes when it is repeated.
- Files that cannot be read, and those of which the model makes no caption, are listed with the reason.
"""

from absl import flags, logging

from videogen_jax import command


def define_flags(flag_values=flags.FLAGS):
    """Defines the flags; not at import time, so that commands can import one another."""

    def define(kind, name, default, text, **bounds):
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=flag_values, **bounds)

    define("string", "input", None, "Folder of videos and images.")
    define("string", "model", None, "Folder of the model, or owner/repository on the hub.")
    text = "Frames of a video that the model sees; at most those that it takes."
    define("integer", "frames", 8, text, lower_bound=1, upper_bound=512)
    text = "What the model is asked [a description in three to five sentences]."
    define("string", "prompt", None, text)
    text = "Longest caption, in tokens of the model."
    define("integer", "max_new_tokens", 256, text, lower_bound=1, upper_bound=4096)
    define("integer", "batch_size", 4, "Files that are captioned at once.", lower_bound=1)
    define("string", "device", None, "PyTorch's name, such as cuda:1 [a GPU if there is one].")
    text = "Type of the weights [bfloat16 on a GPU, else float32]."
    kinds = ["bfloat16", "float16", "float32"]
    flags.DEFINE_enum("dtype", None, kinds, text, flag_values=flag_values)
    text = "Replace captions that this command wrote with other options."
    define("boolean", "overwrite", False, text)
    define("boolean", "strict", False, "Stop at the first file that would be skipped.")
    links = "Follow links to folders, and to files outside --input."
    define("boolean", "follow_links", False, links)


def run(values, progress: bool | None = None) -> dict:
    """Runs the command.

    Args:
      values: parsed flags.
      progress: whether a bar is drawn; None: on a terminal.
    Returns:
      The report, as `caption_folder.caption_folder`.
    Raises:
      ValueError, OSError: the message names the problem and the solution.
    """
    if not values.input:
        raise ValueError("--input is missing: set --input=FOLDER.")
    if not values.model:
        raise ValueError(
            "--model is missing: set --model to the folder of a model, or to its name on the Hugging Face hub."
        )
    from videogen_jax.models import hub
    from videogen_jax.packing import caption_folder, captioner

    def load():
        hub.check_model(values.model)
        options = {name: values[name].value for name in ("frames", "prompt", "max_new_tokens")}
        loaded = captioner.load(values.model, device=values.device, dtype=values.dtype, **options)
        logging.info("%s: %s", values.model, loaded.describe())
        return loaded

    settings = {name: values[name].value for name in ("model", "frames", "max_new_tokens")}
    settings["prompt"] = values.prompt or captioner.PROMPT
    return caption_folder.caption_folder(
        values.input,
        load,
        settings,
        batch_size=values.batch_size,
        overwrite=values.overwrite,
        strict=values.strict,
        follow_links=values.follow_links,
        progress=progress,
    )


def summarize(report: dict, folder) -> str:
    """Returns a summary of the report in a few lines."""
    lines = [
        f"wrote {report['written']} captions into {folder} in {report['seconds']} s; {report['present']} files had one "
        "before"
    ]
    if report["cut"]:
        lines.append(
            f"  {report['cut']} captions reached --max_new_tokens, and end with the last sentence that is whole"
        )
    skipped = report["skipped"]
    lines += [f"  skipped {item['file']}: {item['reason']}" for item in skipped[:10]]
    if len(skipped) > 10:
        lines.append(f"  skipped {len(skipped) - 10} more: see caption_log.jsonl")
    return "\n".join(lines)


def main(arguments: list[str]) -> int | None:
    """Runs the command; returns the exit code."""
    command.refuse(arguments)
    command.log_progress()
    values = flags.FLAGS
    try:
        with command.explain_full_disk(values.input or ""):
            report = run(values)
    except KeyboardInterrupt:
        command.say("caption: stopped: call the same command again to resume behind the captions.")
        return 130
    command.say(summarize(report, values.input))
    return 0


if __name__ == "__main__":
    define_flags()
    command.start("caption", main)
