"""The protocol of an evaluation: scores of two reports are comparable only where their protocols agree."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

# Entries that identify the model, code and files: two reports may differ in them and still be comparable.
NAMES = ("generated", "workdir", "step", "reference_folder", "revision", "version")
# Entries of scores that not every report has: where one lacks them, the other scores are comparable all the same.
PARTS = (
    *("kernel", "floor", "ceiling", "baselines", "memorization", "label", "label_left_out"),
    *("clip_weights", "clip_frames"),
)


def find_revision() -> str | None:
    """The git revision of this package, with "+changes" if files were edited; None outside of a repository."""
    folder = Path(__file__).parent

    def run_git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        revision = run_git("rev-parse", "HEAD")
        return revision + ("+changes" if run_git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def digest(content: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The entries in which two protocols differ: name to (value in a, value in b), None for a missing one."""
    names = [*a, *(name for name in b if name not in a)]
    return {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}
