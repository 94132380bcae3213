"""Progress in a log: a line at intervals, also while nothing is finished, and no bar."""

import time

from absl import logging

from videogen_jax.data import progress


def test_a_line_says_how_much_is_done_and_what_is_left():
    assert (
        progress.describe("Sampling", 0, 64, "video", 75.4) == "Sampling: 0 of 64 videos in 1:15."
    )
    line = progress.describe("Sampling", 16, 64, "video", 120.0)
    assert line == "Sampling: 16 of 64 videos in 2:00, about 6:00 left."
    # What was done before took no time of this call.
    line = progress.describe("Packing", 60, 100, "video", 10.0, initial=40)
    assert line == "Packing: 60 of 100 videos in 0:10, about 0:20 left."
    assert progress.format_time(3600 * 25 + 61) == "25:01:01"
    assert progress.format_time(59.6) == "1:00"


def test_a_log_has_lines_while_nothing_is_finished(monkeypatch, caplog, capsys):
    logging.get_absl_logger().propagate = True
    caplog.set_level("INFO")
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.01)
    with progress.show_progress("Sampling", 2, "video") as advance:
        while not caplog.messages:
            time.sleep(0.01)
        advance(1)
        count = len(caplog.messages)
        while len(caplog.messages) < count + 2:
            time.sleep(0.01)
    assert caplog.messages[0].startswith("Sampling: 0 of 2 videos in 0:0")
    assert caplog.messages[-1].startswith("Sampling: 1 of 2 videos in 0:0")
    ended = len(caplog.messages)
    time.sleep(0.05)
    assert len(caplog.messages) == ended
    assert "\r" not in capsys.readouterr().err  # no bar
