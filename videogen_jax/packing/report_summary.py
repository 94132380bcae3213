"""What `pack` prints at its end: a summary of pack_report.json."""

from videogen_jax.packing import filters
from videogen_jax.packing.pack_folder import LONG_CAPTION

FEW_HELD_OUT = 64  # clips, below which the bias of FVD is larger than most differences


def summarize(report: dict, output) -> str:
    """Returns a summary of the report of a data set in a few lines.

    Args:
      report: as `pack_folder.pack` returns it.
      output: folder of the data set.
    """
    clips, skipped = report["clips"], report["skipped"]
    if report["finished_before"]:
        return f"{output} is already packed with these settings: {sum(clips.values())} clips."
    lines = [
        f"packed {sum(clips.values())} clips ({clips['train']} train, {clips['validation']} "
        f"validation) into {output} in {report['seconds']} s"
    ]
    lines += [
        f"  {name}: {counts['train']} train, {counts['validation']} validation"
        for name, counts in report.get("buckets", {}).items()
    ]
    lines += [f"  {name} is left out: {why}" for name, why in report.get("left_out", {}).items()]
    lines += [f"  skipped {item['file']}: {item['reason']}" for item in skipped[:10]]
    rest = len(skipped) - 10 + report.get("not_listed", {}).get("skipped", 0)
    if rest > 0:
        lines.append(f"  skipped {rest} more: see pack_report.json")
    if left_out := report.get("filtered"):
        lines.append(f"  {filters.describe(left_out)}")
    if pairs := report.get("duplicates"):
        lines.append(
            f"  near-duplicates left out ({len(pairs)}), such as {pairs[0]['dropped']} for {pairs[0]['kept']}: see "
            "pack_report.json"
        )
    if said := report.get("annotations"):
        lines.append(_describe_annotations(said))
    if long := report["long_captions"]:
        lines.append(
            f"  {len(long)} captions have more than {LONG_CAPTION} words, such as that of "
            f"{long[0]}: a text encoder may truncate them"
        )
    if wordless := report.get("captions_without_words"):
        lines.append(
            f"  {len(wordless)} captions have no word, such as that of {wordless[0]}: a model reads them as empty"
        )
    if part := report["settings"].get("shard"):
        lines.append(
            f"  this is part {part}: when all parts are packed, call python -m videogen_jax.merge "
            f"--output={output}"
        )
    elif not clips["validation"]:
        lines.append("  the validation split is empty: training will log no validation loss")
    elif clips["validation"] < FEW_HELD_OUT:
        lines.append(
            f"  few held-out clips ({clips['validation']}): FVD of fewer than {FEW_HELD_OUT} is biased by more than "
            "most differences, so pack with a higher --validation_fraction to evaluate"
        )
    return "\n".join(lines)


def _describe_annotations(said: dict) -> str:
    """Returns what the videos carry beside their pixels, in a line."""
    counts = sorted(map(int, said["captions_per_file"]))
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    parts = [f"captions of a clip: {span}"]
    if episodes := said["episodes"]:
        parts.append(f"episodes: {episodes if isinstance(episodes, int) else len(episodes)}")
    if said["numbers"]:
        parts.append(f"numbers per frame: {', '.join(said['numbers'])}")
    return f"  {'; '.join(parts)}"
