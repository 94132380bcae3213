"""Every file of a workdir and of a data set truncated, emptied and with a bit flipped, one at a time.

A command on what is damaged must give what it gives on the whole, or the result of an older checkpoint by name, or a
sentence. Damage to one checkpoint must never be more than a step back.
"""

import random
import re
import shutil
from pathlib import Path

from tests.campaign import small_run
from tests.campaign.damage import FILE_DAMAGES
from tests.campaign.tallies import Tally

NEWEST, OLDER = small_run.STEPS - 4, small_run.STEPS - 8


def damage(place: Path, count: int, seed: int, log: Path) -> list[Tally]:
    """Damages files; samples from and resumes each workdir, and trains on each data set.

    Args:
      place: empty folder to work in.
      count: number of damaged files of the workdir, drawn at random; 0: all.
      seed: of the damage.
      log: file for the outputs of bad trials.
    Returns:
      Tallies of sampling, resuming and training on damaged data.
    """
    rng = random.Random(seed)
    data, trained = place / "data", place / "trained"
    small_run.succeed(small_run.pack_synthetic(data))
    small_run.succeed(small_run.train(data, trained))
    state = small_run.hash_state(trained)
    # As if the run had been killed before its last checkpoint.
    shutil.rmtree(trained / "checkpoints" / str(small_run.STEPS))
    (trained / "report.html").unlink()
    videos = {}
    for step in (NEWEST, OLDER):
        small_run.succeed(small_run.sample(trained, place / f"videos_{step}", f"--step={step}"))
        videos[step] = _hash_videos(place / f"videos_{step}")

    sampling, resuming = Tally("damaged workdir, sample", log), Tally("damaged workdir, train", log)
    training = Tally("damaged data set, train", log)
    trials = [(path, function) for path in _files(trained) for function in FILE_DAMAGES]
    if count:
        trials = rng.sample(trials, min(count, len(trials)))
    for path, function in trials:
        folder = place / "copy"
        what = f"{path.relative_to(trained)}, {function.__name__}"
        of_checkpoint = path.is_relative_to(trained / "checkpoints")
        _copy(trained, folder, path, function, rng)
        ended = small_run.sample(folder, place / "videos", limit=120)
        outcome = ended.fault
        if outcome is None and ended.code:
            outcome = "lost" if of_checkpoint else "refused in a sentence"
        elif outcome is None:
            found = _hash_videos(place / "videos")
            outcome = "silently wrong"
            if found == videos[NEWEST]:
                outcome = "the same videos"
            elif found == videos[OLDER] and re.search(
                rf"\b{NEWEST}\b.*(damaged|incomplete|read)", ended.output
            ):
                outcome = "the step before, named"
        sampling.add(outcome, what, ended.output)
        shutil.rmtree(place / "videos", ignore_errors=True)
        ended = small_run.train(data, folder, limit=180)
        resuming.add(_outcome(ended, folder, state, of_checkpoint), what, ended.output)
        shutil.rmtree(folder)
    for path in _files(data):
        for function in FILE_DAMAGES:
            folder = place / "copy"
            _copy(data, folder, path, function, rng)
            ended = small_run.train(folder, place / "run", limit=180)
            what = f"{path.relative_to(data)}, {function.__name__}"
            training.add(_outcome(ended, place / "run", state, False), what, ended.output)
            shutil.rmtree(folder)
            shutil.rmtree(place / "run", ignore_errors=True)
    return [sampling, resuming, training]


def _outcome(ended, workdir: Path, state: str, must_work: bool) -> str:
    if ended.fault:
        return ended.fault
    if ended.code:
        return "lost" if must_work else "refused in a sentence"
    return "the same bits" if small_run.hash_state(workdir) == state else "silently wrong"


def _hash_videos(folder: Path) -> str:
    return small_run.hash_files(folder, "*.mp4")


def _files(folder: Path) -> list[Path]:
    """The files that a command may read."""
    passed_over = ("compiled", "tensorboard", "samples")
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path.relative_to(folder).parts[0] not in passed_over)


def _copy(source: Path, target: Path, path: Path, function, rng: random.Random) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    victim = target / path.relative_to(source)
    victim.write_bytes(function(victim.read_bytes(), rng))
