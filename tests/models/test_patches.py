"""Patches against index arithmetic, positions against float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.models import patches


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 3), (4, 4, 6), (1, 1, 1)])
def test_patchify_follows_the_index_arithmetic_and_comes_back(patch):
    pt, ph, pw = patch
    video = np.random.default_rng(0).standard_normal((2, 4, 4, 6, 3)).astype(np.float32)
    tokens = np.asarray(patches.patchify(jnp.asarray(video), patch))
    t, h, w = 4 // pt, 4 // ph, 6 // pw
    assert patches.patch_grid((4, 4, 6), patch) == (t, h, w)
    assert tokens.shape == (2, t, h * w, pt * ph * pw * 3)
    for frame in range(4):
        for y in range(4):
            for x in range(6):
                place = (y // ph) * w + x // pw
                inside = ((frame % pt) * ph + y % ph) * pw + x % pw
                np.testing.assert_array_equal(
                    tokens[:, frame // pt, place, inside * 3 : inside * 3 + 3],
                    video[:, frame, y, x],
                )
    np.testing.assert_array_equal(patches.unpatchify(tokens, patch, 4, 6), video)


@pytest.mark.parametrize(
    ("shape", "name"), [((3, 4, 4), "frames"), ((4, 5, 4), "height"), ((4, 4, 7), "width")]
)
def test_a_side_that_the_patch_does_not_divide_is_named(shape, name):
    with pytest.raises(ValueError, match=rf"{name} of \d is not a multiple of the patch of 2"):
        patches.patch_grid(shape, (2, 2, 2))
    with pytest.raises(ValueError, match=name):
        patches.patchify(jnp.zeros((1, *shape, 3)), (2, 2, 2))


def sincos(position, dim):
    """Sines, then cosines, of position / 10000^(i / (dim / 2)), one Python float at a time."""
    angles = [position / 10_000 ** (2 * i / dim) for i in range(dim // 2)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


@pytest.mark.parametrize("dim", [2, 8, 22])
def test_sincos_1d_is_the_formula(dim):
    got = patches.sincos_1d(np.arange(500), dim)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [sincos(i, dim) for i in range(500)], atol=1e-6)


@pytest.mark.parametrize(
    ("dim", "time", "space"), [(6, 2, 2), (12, 4, 4), (16, 8, 4), (128, 44, 42)]
)
def test_sincos_3d_gives_each_axis_its_part(dim, time, space):
    got = np.asarray(patches.sincos_3d((3, 2, 4), dim))
    assert got.shape == (3, 8, dim)
    for t in range(3):
        for y in range(2):
            for x in range(4):
                expected = sincos(t, time) + sincos(y, space) + sincos(x, space)
                np.testing.assert_allclose(got[t, y * 4 + x], expected, atol=1e-6)


def test_no_two_positions_are_alike():
    table = np.asarray(patches.sincos_3d((20, 5, 5), 12)).reshape(-1, 12)
    assert len(np.unique(table.round(5), axis=0)) == 500


def test_the_table_of_a_long_video_is_no_constant_of_the_program():
    """480 frames of 32x32 patches at width 512 are a gigabyte."""
    program = jax.make_jaxpr(lambda: patches.sincos_3d((480, 32, 32), 512))()
    assert program.out_avals[0].shape == (480, 1024, 512)
    assert sum(np.size(constant) for constant in program.consts) < 1e6


@pytest.mark.parametrize("dim", [4, 7])
def test_widths_without_room_for_three_axes_are_refused(dim):
    with pytest.raises(ValueError, match="even width of at least 6"):
        patches.sincos_3d((1, 1, 1), dim)
