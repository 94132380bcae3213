"""What the loop reads of a batch of clips."""

import types

import numpy as np

from videogen_jax.train import run_kinds


def test_a_motion_score_on_an_edge_belongs_to_the_bucket_above():
    """The bucket is the number of edges that the score reaches, as quantiles are defined; images have a score of 0."""
    data = types.SimpleNamespace(motion_score_buckets=[1.0, 2.0, 2.0, 5.0])
    conditioning = types.SimpleNamespace(batch_conditions=("motion", "fps"))
    run = types.SimpleNamespace(model=types.SimpleNamespace(conditioning=conditioning))
    scores = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 5.0, 9.0], np.float32)
    clips = {"video": None, "fps": np.full(7, 8, np.float32), "motion_score": scores}
    texts = types.SimpleNamespace(read=lambda clips: None)
    batch = run_kinds.read_batch(run, texts, data, clips)
    assert batch["motion"].tolist() == [0, 0, 1, 1, 3, 4, 4]
    assert batch["motion"].dtype == np.float32 and batch["fps"].tolist() == [8] * 7
