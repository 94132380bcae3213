"""Kills, damages and fills disks at random, and counts what became of it (docs/reliability.md).

    python -m tests.campaign --place=/tmp/campaign            # everything, an hour or two on two cores
    python -m tests.campaign --only=media,weights --media=40  # some of it

It ends with exit code 1 if anything was lost, silently wrong, ended in a traceback or did not end. `log.txt` in the
place has the outputs of those trials.
"""

import argparse
import functools
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.campaign import commands, damaged_files, full_disk, kills, media, tallies, weights


def main() -> int:
    """Runs the campaign and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--place", type=Path, help="Folder to work in [a temporary one].")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="media,weights,kills,disk,files")
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs.")
    parser.add_argument("--media", type=int, default=400, help="Damaged videos.")
    parser.add_argument("--weights", type=int, default=400, help="Damaged safetensors.")
    parser.add_argument("--disks", type=int, default=6, help="Full disks for each verb.")
    parser.add_argument("--files", type=int, default=0, help="Damaged files of a workdir [all].")
    values = parser.parse_args()
    place = values.place or Path(tempfile.mkdtemp(prefix="campaign_"))
    place.mkdir(parents=True, exist_ok=True)
    commands.prepare(place / "compiled")
    parts = {
        "media": functools.partial(media.damage, count=values.media),
        "weights": functools.partial(weights.damage, count=values.weights),
        "kills": functools.partial(kills.kill, count=values.kills),
        "disk": functools.partial(full_disk.fill, count=values.disks),
        "files": functools.partial(damaged_files.damage, count=values.files),
    }
    results: list[tallies.Tally] = []
    for name in values.only.split(","):
        started = time.perf_counter()
        shutil.rmtree(place / name, ignore_errors=True)
        results += parts[name](place / name, seed=values.seed, log=place / "log.txt")
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        print(tallies.to_markdown(results), flush=True)
    return int(any(tally.bad for tally in results))


if __name__ == "__main__":
    sys.exit(main())
