"""Makes one data set of the parts that `pack --shard` made, and checks it.

    python -m videogen_jax.merge --output=DIR

DIR is the --output of the calls of pack. Parts that are missing are named, with the command that makes them. The same
command again continues a call that was ended, and checks a data set that is finished: that every shard is there, with
its size and its number of clips. --check only does that, for any data set of pack or encode.
"""

from absl import flags

from videogen_jax import command

_OUTPUT = flags.DEFINE_string("output", None, "Folder of the data set.")
_CHECK = flags.DEFINE_boolean("check", False, "Only check a finished data set.")


def main(arguments: list[str]) -> None:
    """Runs the verb."""
    command.refuse(arguments)
    from videogen_jax.data import merging  # TensorFlow: only once the flags are right

    output = _OUTPUT.value
    if not _CHECK.value:
        report = merging.merge(output)
        if not report["finished_before"]:
            print(summarize(report, output))
            return
    counts = merging.check(output)
    clips = sum(sum(splits.values()) for splits in counts.values())
    shapes = f" in {len(counts)} buckets" if "" not in counts else ""
    print(f"{output} is whole: {clips} clips{shapes}, every shard has its size and its clips")


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
    flags.mark_flags_as_required(["output"])
    command.start("merge", main)
