"""SIGKILL at random moments; the same command again must end with the same bytes as an undisturbed one."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.campaign import media, small_run
from tests.campaign.commands import Ended
from tests.campaign.tallies import Tally

KILLS_PER_RUN = 4


def kill(place: Path, count: int, seed: int, log: Path) -> list[Tally]:
    """Kills training, packing, encoding and sampling.

    Args:
      place: empty folder to work in.
      count: number of kills, shared evenly between the verbs.
      seed: of the moments.
      log: file for the outputs of bad trials.
    Returns:
      A tally for each verb; a trial is one kill, whose outcome is that of the run that it disturbed.
    """
    rng = random.Random(seed)
    videos, data = place / "videos", place / "data"
    media.write_videos(videos, 24)
    small_run.succeed(small_run.pack_synthetic(data))
    trained = place / "trained"
    small_run.succeed(small_run.train(data, trained))

    def train(folder: Path, **options) -> Ended:
        return small_run.train(data, folder, **options)

    def pack(folder: Path, **options) -> Ended:
        return small_run.pack(videos, folder, **options)

    def encode(folder: Path, **options) -> Ended:
        return small_run.encode(data, folder, **options)

    def sample(folder: Path, **options) -> Ended:
        return small_run.sample(trained, folder, **options)

    def hash_run(folder: Path) -> str:
        assert (folder / "report.html").is_file()
        return small_run.hash_state(folder)

    def hash_samples(folder: Path) -> str:
        return small_run.hash_files(folder, "*.mp4", "samples.json")

    verbs = {"training": (train, hash_run), "packing": (pack, small_run.hash_data)}
    if small_run.WEIGHTS.is_file():
        verbs["encoding"] = (encode, small_run.hash_data)
    verbs["sampling"] = (sample, hash_samples)
    share = count // len(verbs)
    return [
        _kill_verb(place / name, name, run, digest, share, rng, log)
        for name, (run, digest) in verbs.items()
    ]


def _kill_verb(
    place: Path,
    name: str,
    run: Callable[..., Ended],
    digest: Callable[[Path], str],
    count: int,
    rng: random.Random,
    log: Path,
) -> Tally:
    tally = Tally(f"SIGKILL, {name}", log)
    run(place / "warm")  # compiles
    undisturbed = run(place / "undisturbed")
    small_run.succeed(undisturbed)
    truth = digest(place / "undisturbed")
    trials = 0
    while trials < count:
        folder = place / "disturbed"
        moments = []
        for _ in range(min(KILLS_PER_RUN, count - trials)):
            moments.append(rng.uniform(0.0, undisturbed.seconds))
            run(folder, kill_after=moments[-1])
        trials += len(moments)
        ended = run(folder)
        what = f"killed after {', '.join(f'{moment:.2f}' for moment in moments)} s"
        outcome = ended.fault or ("lost" if ended.code else None)
        if outcome is None:
            try:
                outcome = "the same bytes" if digest(folder) == truth else "silently wrong"
            except (AssertionError, OSError, RuntimeError) as error:
                outcome, what = "lost", f"{what}: {error}"
        for _ in moments:
            tally.add(outcome, what, ended.output)
        shutil.rmtree(folder)
    return tally
