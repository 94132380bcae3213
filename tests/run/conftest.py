"""Shared by the tests of runs."""

import pytest

from videogen_jax.run import caption_embedder


@pytest.fixture(scope="module")
def small_batches():
    """A few captions at a time: what is computed is the same, and padded batches cost less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_embedder, "CAPTIONS_AT_A_TIME", 4)
        patch.setattr(caption_embedder, "TOKENS_AT_A_TIME", 512)
        yield
