"""Merges the parts written by `pack --shard` into one data set, and checks it.

    python -m videogen_jax.merge --output=DIR

DIR is the --output of the calls of pack. A missing part is an error that names the command to pack it. Repeating the
command resumes an interrupted merge, or checks a finished data set: that every shard exists, with the right number of
clips and the bytes that were written. --check does only the latter, for any data set of pack or encode.
"""

from absl import flags

from videogen_jax import command
from videogen_jax.packing import filters


def define_flags(flag_values=flags.FLAGS):
    """Defines the flags; not at import time, so that commands can import one another."""
    flags.DEFINE_string("output", None, "Folder of the data set.", flag_values=flag_values)
    text = "Only check a finished data set."
    flags.DEFINE_boolean("check", False, text, flag_values=flag_values)


def main(arguments: list[str]) -> None:
    """Runs the command."""
    command.refuse(arguments)
    command.log_progress()
    with command.explain_full_disk(flags.FLAGS.output or ""):
        message = run(flags.FLAGS)
    command.say(message)


def run(values) -> str:
    """Runs the command.

    Args:
      values: parsed flags.
    Returns:
      A message for the user.
    Raises:
      ValueError: the message names the problem and the solution.
    """
    if not values.output:
        raise ValueError("--output is missing: set --output=FOLDER, as for pack.")
    from videogen_jax.packing import merge_parts  # imports TensorFlow; only with valid flags

    output = values.output
    if not values.check:
        report = merge_parts.merge(output)
        if not report["finished_before"]:
            return summarize(report, output)
    counts = merge_parts.check(output, progress=None)
    clips = sum(sum(splits.values()) for splits in counts.values())
    shapes = f" in {len(counts)} buckets" if "" not in counts else ""
    return (
        f"{output} is complete: {clips} clips{shapes}; every shard has the right number of clips and the bytes that "
        "were written"
    )


def summarize(report: dict, output: str) -> str:
    """Returns a summary of the report in a few lines."""
    clips = report["clips"]
    lines = [
        f"merged {report['parts']} parts into {output}: {sum(clips.values())} clips ({clips['train']} train, "
        f"{clips['validation']} validation), {len(report['skipped'])} files skipped (pack_report.json)"
    ]
    lines += [f"  {name} is left out: {why}" for name, why in report.get("left_out", {}).items()]
    if left_out := report.get("filtered"):
        lines.append(f"  {filters.describe(left_out)}")
    if pairs := report.get("duplicates"):
        lines.append(f"  near-duplicates left out: {len(pairs)} (pack_report.json)")
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    command.start("merge", main)
