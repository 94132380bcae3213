"""Patches against index arithmetic."""

import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.models import patches


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 3), (4, 4, 6), (1, 1, 1)])
def test_patchify_follows_the_index_arithmetic_and_is_inverted(patch):
    pt, ph, pw = patch
    video = np.random.default_rng(0).standard_normal((2, 4, 4, 6, 3)).astype(np.float32)
    tokens = np.asarray(patches.patchify(jnp.asarray(video), patch))
    t, h, w = 4 // pt, 4 // ph, 6 // pw
    assert patches.patch_grid((4, 4, 6), patch) == (t, h, w)
    assert tokens.shape == (2, t, h * w, pt * ph * pw * 3)
    for frame in range(4):
        for y in range(4):
            for x in range(6):
                patch_index = (y // ph) * w + x // pw
                inside = ((frame % pt) * ph + y % ph) * pw + x % pw
                np.testing.assert_array_equal(
                    tokens[:, frame // pt, patch_index, inside * 3 : inside * 3 + 3],
                    video[:, frame, y, x],
                )
    np.testing.assert_array_equal(patches.unpatchify(tokens, patch, 4, 6), video)


@pytest.mark.parametrize(
    ("shape", "name"), [((3, 4, 4), "frames"), ((4, 5, 4), "height"), ((4, 4, 7), "width")]
)
def test_the_error_for_an_indivisible_size_names_it(shape, name):
    with pytest.raises(ValueError, match=rf"{name} of \d is not a multiple of the patch of 2"):
        patches.patch_grid(shape, (2, 2, 2))
    with pytest.raises(ValueError, match=name):
        patches.patchify(jnp.zeros((1, *shape, 3)), (2, 2, 2))
