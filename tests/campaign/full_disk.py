"""Each verb on a disk that is full before its end: one sentence and exit code 1; with room, the same result as ever.

The disks are tmpfs of random sizes, which only root can mount.
"""

import contextlib
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.campaign import media, small_run
from tests.campaign.commands import Ended
from tests.campaign.tallies import Tally

LIMIT = 60  # seconds, of which a verb works for at most half without a full disk


def fill(place: Path, count: int, seed: int, log: Path) -> list[Tally]:
    """Runs the verbs that write on disks of random sizes.

    Args:
      place: empty folder to work in.
      count: number of disks for each verb.
      seed: of the sizes.
      log: file for the outputs of bad trials.
    Returns:
      A tally for each verb; none without permission to mount a tmpfs.
    """
    rng = random.Random(seed)
    place.mkdir(parents=True, exist_ok=True)
    videos, data, trained = place / "videos", place / "data", place / "trained"
    try:
        with _disk(place / "probe", 1 << 20):
            pass
    except (subprocess.CalledProcessError, FileNotFoundError):
        print("No permission to mount a tmpfs: full disks are left out.")
        return []
    media.write_videos(videos, 24)
    small_run.succeed(small_run.pack_synthetic(data))
    small_run.succeed(small_run.train(data, trained))
    verbs: dict[str, tuple[Callable, Callable]] = {
        "pack": (lambda folder: small_run.pack(videos, folder, limit=LIMIT), small_run.hash_data),
        "train": (lambda folder: small_run.train(data, folder, limit=LIMIT), small_run.hash_state),
        "sample": (
            lambda folder: small_run.sample(trained, folder, limit=LIMIT),
            lambda folder: small_run.hash_files(folder, "*.mp4", "samples.json"),
        ),
    }
    if small_run.WEIGHTS.is_file():
        verbs["encode"] = (
            lambda folder: small_run.encode(data, folder, limit=LIMIT),
            small_run.hash_data,
        )
    return [_fill(place / name, name, *pair, count, rng, log) for name, pair in verbs.items()]


def _fill(place: Path, name: str, run: Callable[[Path], Ended], digest, count, rng, log) -> Tally:
    tally = Tally(f"full disk, {name}", log)
    # The folder has one name for all: W&B, reports and recipes may contain it.
    with _disk(place, 1 << 30):
        run(place / "output")
        truth = digest(place / "output")
        written = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    for _ in range(count):
        size = rng.randrange(8 << 10, written) // 4096 * 4096
        with _disk(place, size):
            ended = run(place / "output")
            outcome, what = ended.fault, f"{size} bytes of {written}"
            if outcome is None and ended.code == 0:  # what matters had room
                same = digest(place / "output") == truth
                tally.add("finished nevertheless" if same else "silently wrong", what, ended.output)
                continue
            subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
            again = run(place / "output")
            outcome = outcome or again.fault or ("lost" if again.code else None)
            if outcome is None:
                same = digest(place / "output") == truth
                outcome = "a sentence, then the same bytes" if same else "silently wrong"
            tally.add(outcome, what, ended.output + again.output)
    return tally


@contextlib.contextmanager
def _disk(place: Path, size: int) -> Iterator[None]:
    """A disk of `size` bytes at `place` while the context lasts."""
    place.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    subprocess.run(["mount", *options], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, capture_output=True)
