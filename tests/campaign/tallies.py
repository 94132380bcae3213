"""Counts of trials by what became of them."""

import collections
from pathlib import Path

BAD = ("lost", "silently wrong", "traceback", "hang", "no sentence", "signal")


class Tally:
    """Counts the outcomes of one kind of trial and keeps a line about each bad one."""

    def __init__(self, name: str, log: Path):
        self.name = name
        self.log = log
        self.counts: collections.Counter[str] = collections.Counter()

    def add(self, outcome: str, what: str = "", output: str = "") -> None:
        """Counts one trial.

        Args:
          outcome: one of BAD, or a good one in a word or two.
          what: which trial, to find it again.
          output: of its command; goes to the log if the outcome is bad.
        """
        self.counts[outcome] += 1
        if outcome in BAD:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"=== {self.name}: {outcome}: {what}\n{output[-4000:]}\n")
            print(f"{self.name}: {outcome}: {what}", flush=True)

    @property
    def bad(self) -> int:
        """Number of trials with a bad outcome."""
        return sum(self.counts[outcome] for outcome in BAD)


def to_markdown(tallies: list[Tally]) -> str:
    """Formats the tallies as a table: a row for each kind of trial."""
    header = ("trials of", "number", "lost", "silently wrong", "tracebacks", "hangs", "others")
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for tally in tallies:
        counts = tally.counts
        cells = [tally.name, str(counts.total()), str(counts["lost"] + counts["signal"])]
        cells += [str(counts["silently wrong"]), str(counts["traceback"] + counts["no sentence"])]
        others = ", ".join(f"{n} {name}" for name, n in counts.most_common() if name not in BAD)
        lines.append("| " + " | ".join([*cells, str(counts["hang"]), others]) + " |")
    return "\n".join(lines) + "\n"
