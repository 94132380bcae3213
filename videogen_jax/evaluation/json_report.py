"""The JSON report of an evaluation: assembled, formatted as text, read back and compared with another."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from videogen_jax import __version__
from videogen_jax.evaluation import bounds, prompt_accuracy, protocol
from videogen_jax.evaluation.scoring import Result


def assemble(
    settings: Mapping[str, Any], verdicts: Mapping[str, Any], results: Iterable[Result]
) -> dict[str, Any]:
    """Collects the scores of an evaluation.

    Args:
      settings: protocol entries of how the videos were made.
      verdicts: result of `scoring.judge_prompts`.
      results: further scores; later ones are listed first.
    Returns:
      {"scores", "left_out", "protocol"}, and the details of label accuracy and memorization.
    """
    scores = prompt_accuracy.to_scores(verdicts) if verdicts else []
    document: dict[str, Any] = {"scores": scores, "left_out": {}}
    document["protocol"] = {"version": __version__, "revision": protocol.find_revision()}
    document["protocol"] |= settings
    for result in results:
        document["scores"] = result.scores + document["scores"]
        document["protocol"] |= result.protocol
        document["left_out"] = result.left_out | document["left_out"]
        document |= result.details
    return document


def format_lines(document: Mapping[str, Any], verdicts: Mapping[str, Any]) -> list[str]:
    """Formats the scores and the clips that were left out, as the command prints them."""
    lines = [prompt_accuracy.format_table(verdicts)] if verdicts else []
    lines += format_bounds(document["scores"])
    for score in document["scores"]:
        if score["name"] not in verdicts and score["name"] != "all three":
            count = f"N = {score['n']}, " if "n" in score else ""
            lines.append(f"{score['name']}: {format_score(score)}; {count}{score.get('note', '')}")
            if lower := [part for part in score.get("parts", ()) if part["value"] < 1]:
                lines.append("  below 100 %: " + ", ".join(map(_format_part, lower)))
    for name, clips in document["left_out"].items():
        for clip in clips:
            lines.append(f"left out of the {name} set: {clip['file']}: {clip['reason']}")
    for video in verdicts.get("unreadable", []):
        lines.append(f"unreadable, counted as wrong: {video['file']}: {video['reason']}")
    for name in verdicts.get("not_listed", []):
        lines.append(f"not in samples.json, not counted: {name}")
    return lines


def format_bounds(scores: Iterable[Mapping[str, Any]]) -> list[str]:
    """Formats the scores that have a floor, a ceiling or baselines as the rows of a table; empty without such."""
    scores = [score for score in scores if any(name in score for name in bounds.COLUMNS)]
    names = [name for name in bounds.COLUMNS if any(name in score for score in scores)]
    if not scores:
        return []
    has_share = any("share" in score for score in scores)
    head = ["", "value", "95 % interval", *(bounds.COLUMNS[name] for name in names)]
    rows = [head + ["of the way"] * has_share]
    for score in scores:
        interval = f"{score['low']:.4g} to {score['high']:.4g}" if "low" in score else ""
        cells = [f"{score[name]:.4g}" if name in score else "" for name in names]
        share = [f"{score['share']:.1%}" if "share" in score else ""] * has_share
        rows.append([score["name"], f"{score['value']:.4g}", interval, *cells, *share])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]


def _format_part(part: Mapping[str, Any]) -> str:
    return f"{part['name']} {part['value']:.0%} ({part['note']})"


def spread(score: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The lines of a score, by name: itself, then those of its floor, ceiling, baselines and share that it has."""
    name = score["name"]
    beside = {
        f"{name}, {text}": {"name": f"{name}, {text}", "value": score[key]}
        for key, text in (*bounds.COLUMNS.items(), ("share", "share of the way"))
        if key in score
    }
    return {name: dict(score)} | beside


def read_report(path: str | Path) -> dict[str, Any]:
    """Reads an evaluation.json, given its path or its folder.

    Raises:
      ValueError: the file is not a report of evaluate.
      FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "evaluation.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: run videogen_jax.evaluate first.")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        for score in report["scores"]:
            str.strip(score["name"])
            for name in ("value", "low", "high", "share", *bounds.COLUMNS):
                float(score.get(name, 0))
        dict(report["protocol"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a report of videogen_jax.evaluate ({error}): write it again."
        ) from None
    return report


def compare(path_a: str | Path, path_b: str | Path) -> str:
    """Formats two reports side by side, the differences between their protocols first.

    Args:
      path_a: an evaluation.json or its folder.
      path_b: another one.
    Raises:
      ValueError: one of them is not a report of evaluate.
      FileNotFoundError: one of them does not exist.
    """
    a, b = read_report(path_a), read_report(path_b)
    found = protocol.differences(a["protocol"], b["protocol"])
    lines = {
        name: f"  {name}: {_show(one)} | {_show(other)}" for name, (one, other) in found.items()
    }
    # What one report does not have at all cannot be compared, and says nothing about the scores that both have.
    single = [name for name in found if name in protocol.PARTS and None in found[name]]
    differs = [line for name, line in lines.items() if name not in (*protocol.NAMES, *single)]
    text = (
        ["The protocols differ: the scores are not comparable."] if differs else ["Same protocol."]
    )
    text += differs
    if single:
        text += ["In one report only:", *(lines[name] for name in single)]
    text += ["Compared:", *(lines[name] for name in lines if name in protocol.NAMES)]
    scores = [
        {name: line for score in report["scores"] for name, line in spread(score).items()}
        for report in (a, b)
    ]
    width = max(28, *(len(name) for each in scores for name in each), 0) if any(scores) else 28
    text += [f"{'':<{width}} {'a':>36} {'b':>36}", ""]
    for name in [*scores[0], *(name for name in scores[1] if name not in scores[0])]:
        columns = "".join(f" {format_score(each.get(name)):>36}" for each in scores)
        text.append(f"{name:<{width}}{columns}")
    text += ["", f"a: {path_a}", f"b: {path_b}"]
    return "\n".join(text)


def format_score(score: dict[str, Any] | None) -> str:
    """Formats a score and its interval as in "123.4 (110.2 to 136.6)"; "-" for None."""
    if score is None:
        return "-"
    text = f"{score['value']:.4g}"
    return f"{text} ({score['low']:.4g} to {score['high']:.4g})" if "low" in score else text


def _show(value: Any) -> str:
    return "-" if value is None else str(value)
