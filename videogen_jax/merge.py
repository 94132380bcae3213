"""Makes one data set of the parts that `pack --shard` made, and checks it.

    python -m videogen_jax.merge --output=DIR

DIR is the --output of the calls of pack. Parts that are missing are named, with the command that makes them. The same
command again continues a call that was ended, and checks a data set that is finished: that every shard is there, with
its size and its number of clips. --check only does that, for any data set of pack or encode.
"""

from absl import flags

from videogen_jax import command


def define_flags(flag_values=flags.FLAGS):
    """Defines the command's flags; not done on import, so that verbs can import one another."""
    flags.DEFINE_string("output", None, "Folder of the data set.", flag_values=flag_values)
    text = "Only check a finished data set."
    flags.DEFINE_boolean("check", False, text, flag_values=flag_values)


def main(arguments: list[str]) -> None:
    """Runs the verb."""
    command.refuse(arguments)
    print(run(flags.FLAGS))


def run(values) -> str:
    """Runs the command.

    Args:
      values: parsed flags.
    Returns:
      What to say about it.
    Raises:
      ValueError: one sentence that says what is wrong and what to do.
    """
    if not values.output:
        raise ValueError("--output is missing: write --output=FOLDER, as for pack.")
    from videogen_jax.packing import merge_parts  # TensorFlow: only once the flags are right

    output = values.output
    if not values.check:
        report = merge_parts.merge(output)
        if not report["finished_before"]:
            return summarize(report, output)
    counts = merge_parts.check(output)
    clips = sum(sum(splits.values()) for splits in counts.values())
    shapes = f" in {len(counts)} buckets" if "" not in counts else ""
    return f"{output} is whole: {clips} clips{shapes}, every shard has its size and its clips"


def summarize(report: dict, output: str) -> str:
    """Says in a few lines what was merged."""
    clips = report["clips"]
    lines = [
        f"merged {report['parts']} parts into {output}: {sum(clips.values())} clips ({clips['train']} train, "
        f"{clips['validation']} validation), {len(report['skipped'])} files skipped (pack_report.json)"
    ]
    lines += [f"  {name} is left out: {why}" for name, why in report.get("left_out", {}).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    command.start("merge", main)
