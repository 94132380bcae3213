"""What a training says of how far it is, in a log and on a terminal."""

import io

import pytest
from absl import logging

from videogen_jax.train import metrics, progress


@pytest.fixture
def lines(monkeypatch):
    found = []
    monkeypatch.setattr(logging, "info", lambda text, *values: found.append(text % values))
    return found


def run(steps, seconds, readings, last=4200, first=1, stream=None):
    """Steps of so many seconds each, with a reading after some of them."""
    now = [0.0]
    shown = progress.Progress(first, last, stream=stream or io.StringIO(), clock=lambda: now[0])
    for step in range(first, first + steps):
        now[0] += seconds
        shown.step(step)
        if step in readings:
            shown.read(step, {"loss/train": 0.468631, "speed/clips_per_second": 252.692})
    shown.close()


def test_a_reading_is_a_line_with_step_loss_rate_and_time_left(lines):
    run(steps=50, seconds=0.2, readings=[50])
    # 4150 steps of 0.2 s
    assert lines == ["[50] of 4,200 steps: loss 0.4686, 253 clips/s, 14 min left"]


def test_slow_steps_are_heard_of_every_thirty_seconds(lines):
    run(steps=5, seconds=20, readings=[3], last=100, first=1)
    assert lines == [
        "[2] of 100 steps: 33 min left",  # 98 x 20 s
        "[3] of 100 steps: loss 0.4686, 253 clips/s, 32 min left",
        "[5] of 100 steps: loss 0.4686, 32 min left",
    ]


def test_a_resumed_run_counts_from_the_run_and_measures_its_own_steps(lines):
    run(steps=3, seconds=2, readings=[1002], first=1000, last=1010)
    assert lines == ["[1002] of 1,010 steps: loss 0.4686, 253 clips/s, 16 s left"]


def test_processes_but_the_first_are_silent(lines):
    shown = progress.Progress(1, 10, speaks=False, stream=io.StringIO())
    shown.step(1)
    shown.read(1, {"loss/train": 1.0, "speed/clips_per_second": 1.0})
    shown.close()
    assert not lines


def test_a_terminal_gets_a_bar_instead_of_lines(lines):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    filters = list(logging.get_absl_handler().filters)
    run(steps=5, seconds=1, readings=[4], last=5, stream=terminal)
    drawn = terminal.getvalue()
    assert "5/5" in drawn and "loss 0.4686, 253 clips/s" in drawn and not lines
    assert logging.get_absl_handler().filters == filters


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3599, "1 h 0 min"), (12000, "3 h 20 min")]
    + [(187200, "2 d 4 h")],
)
def test_durations_in_their_two_largest_units(seconds, text):
    assert progress.format_seconds(seconds) == text


def test_few_clips_are_counted_by_the_minute():
    assert progress.format_rate(0.12) == "7.2 clips/min"
    assert progress.format_rate(7.23) == "7.2 clips/s"


def test_the_log_has_validation_and_scores_and_the_dashboard_the_rest():
    scalars = {"loss/train": 1.0, "optimisation/gradient_norm": 2.0, "memory/host_gib": 3.0}
    assert metrics.describe_scores(scalars) == ""
    assert metrics.describe_scores({"loss_by_noise_level/0.000-0.125": 1.0}) == ""
    found = metrics.describe_scores(
        {"loss/validation": 0.0224125, "loss/validation_120x384x640": 0.5, "evaluation/psnr": 31.25}
    )
    assert found == "validation loss 0.02241, validation loss 120x384x640 0.5, psnr 31.25"
