"""Checks every command and link of README, CONTRIBUTING and docs/: `make docs-check`.

Each command of a verb is parsed as it stands, by the verb itself: flags that do not exist, misspelt options and configs
that are not there are errors. Those that need no data of the reader's and no GPU (COMMANDS_RUN) are then run from the
first to the last in an empty folder, shortened by the flags behind them.
"""

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHORT = (
    "--config.train.steps=2 --config.learning_rate.warmup_steps=1 --config.batch_size=8 "
    "--config.data.shuffle_window=16 --config.checkpoint.every=2 --config.sample.every=2"
)
PLACES = ("...", "NAME.py", "mine.py")  # commands with these are patterns for the reader to fill in
# The beginning of a command of the pages, and what shortens it.
COMMANDS_RUN = {
    "python -m videogen_jax.pack --synthetic=moving_shapes --clips=2880": "--clips=144",
    "python launch.py --config=configs/quickstart.py --workdir=runs/quickstart": SHORT,
    "python -m videogen_jax.sample --workdir=runs/quickstart": "--num_inference_steps=2",
    "python -m videogen_jax.evaluate --generated=runs/quickstart/generated": "",
    "python -m videogen_jax.config": "",
}


def find_commands(page: Path) -> list[str]:
    """The commands of a page: in blocks of sh and console, and inline behind `python`."""
    text = page.read_text()
    commands = []
    for kind, block in re.findall(r"```(sh|console)\n(.*?)```", text, re.S):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if kind == "console" and not line.startswith("$ "):
                continue
            commands.append(line.removeprefix("$ ").split(" #")[0].strip())
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    commands += re.findall(r"`(python [^`]+)`", prose)
    return [one for one in commands if re.match(r"(python|videogen|srun python) ", one)]


def arguments_of(command: str) -> list[str] | None:
    """The words of a command that can be parsed; None of one that is only named, or has places to fill in."""
    command = command.split(" > ")[0]
    words = shlex.split(command.replace("$i", "0").removeprefix("srun "))
    if words[0] == "videogen":
        words = ["python", "-m", "videogen_jax.cli", *words[1:]]
    if len(words) < 2 or "…" in command or words[-1] == "--workdir":
        return None
    if any(place in command for place in PLACES):
        return None
    return [sys.executable, *words[1:]]


def check_command(command: str) -> str | None:
    """Has the verb parse its flags and print its help instead of working; returns what is wrong."""
    words = arguments_of(command)
    if words is None:
        return None
    done = subprocess.run([*words, "--help"], cwd=ROOT, capture_output=True, text=True)
    text = done.stdout + done.stderr
    if "error:" in text or "Traceback" in text or not re.search("usage|flags:|options", text, re.I):
        return text[-500:]
    return None


def check_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    broken = []
    for target in re.findall(r"\]\(([^)#:\s]+)?(?:#[^)\s]*)?\)", page.read_text()):
        if target and not (page.parent / target).exists():
            broken.append(target)
    return broken


def run_commands(commands: list[str]) -> list[str]:
    """Runs COMMANDS_RUN in an empty folder; returns what failed."""
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("launch.py", "configs", "videogen_jax"):
            (Path(folder) / name).symlink_to(ROOT / name)
        for beginning, shorter in COMMANDS_RUN.items():
            command = next((one for one in commands if one.startswith(beginning)), None)
            if command is None:
                failed.append(f"{beginning}: no page has it any more")
                continue
            print("run", command, shorter, flush=True)
            words = [*arguments_of(command), *shlex.split(shorter)]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                failed.append(f"{command}: {done.stderr[-1000:]}")
    return failed


def main() -> int:
    """Checks all pages; returns the exit code."""
    wrong, commands = [], []
    for page in PAGES:
        wrong += [f"{page.name}: there is no {target}" for target in check_links(page)]
        for command in find_commands(page):
            if command in commands:
                continue
            commands.append(command)
            print("parse", command, flush=True)
            if reason := check_command(command):
                wrong.append(f"{page.name}: {command}: {reason}")
    wrong += run_commands(commands)
    print("\n".join(wrong) or f"{len(commands)} commands are right.")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
