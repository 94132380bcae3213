"""How a score came about, beside the score: two scores mean something together only where these agree."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

# What tells one model and its place from another: differs where two models are compared, which is no fault.
NAMES = ("generated", "workdir", "step", "reference_folder", "revision", "version")


def find_revision() -> str | None:
    """The git revision of this package, with "+changes" where files were edited; None outside of a repository."""
    folder = Path(__file__).parent

    def ask(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        revision = ask("rev-parse", "HEAD")
        return revision + ("+changes" if ask("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def read_report(path: str | Path) -> dict[str, Any]:
    """Reads what evaluate wrote.

    Raises:
      ValueError: it is something else.
      FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "evaluation.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: run videogen_jax.evaluate first.")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        {score["name"]: score["value"] for score in report["scores"]}
        dict(report["protocol"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no report of videogen_jax.evaluate ({error}): make it again."
        ) from None
    return report


def digest(content: Any) -> str:
    """A short name of JSON-able content."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where two protocols differ.

    Args:
      a: protocol.
      b: protocol.
    Returns:
      Line to its values in a and b; None where it has none.
    """
    lines = [*a, *(name for name in b if name not in a)]
    return {name: (a.get(name), b.get(name)) for name in lines if a.get(name) != b.get(name)}


def compare(path_a: str | Path, path_b: str | Path) -> str:
    """Two reports side by side, the differences between their protocols first.

    Args:
      path_a: of evaluate's JSON, or its folder.
      path_b: the same.
    Returns:
      The text.
    Raises:
      ValueError: one of them is no report.
      FileNotFoundError: one of them is not there.
    """
    a, b = read_report(path_a), read_report(path_b)
    found = differences(a["protocol"], b["protocol"])
    lines = {
        name: f"  {name}: {_show(one)} | {_show(other)}" for name, (one, other) in found.items()
    }
    differs = [line for name, line in lines.items() if name not in NAMES]
    text = ["The protocols differ: these scores do not compare."] if differs else ["Same protocol."]
    text += [*differs, "What is compared:", *(lines[name] for name in lines if name in NAMES)]
    scores = [{score["name"]: score for score in report["scores"]} for report in (a, b)]
    text += [f"{'':<28} {'a':>36} {'b':>36}", ""]
    for name in [*scores[0], *(name for name in scores[1] if name not in scores[0])]:
        columns = "".join(f" {format_score(each.get(name)):>36}" for each in scores)
        text.append(f"{name:<28}{columns}")
    text += ["", f"a: {path_a}", f"b: {path_b}"]
    return "\n".join(text)


def format_score(score: dict[str, Any] | None) -> str:
    """A score's value with its interval, as in "123.4 (110.2 to 136.6)"."""
    if score is None:
        return "-"
    text = f"{score['value']:.4g}"
    return f"{text} ({score['low']:.4g} to {score['high']:.4g})" if "low" in score else text


def _show(value: Any) -> str:
    return "-" if value is None else str(value)
