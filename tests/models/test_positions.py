"""Position embeddings against formulas in plain Python, and their properties."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.models import positions


def sincos(position, dim):
    """Sines, then cosines, of position / 10000^(i / (dim / 2)), one Python float at a time."""
    angles = [position / 10_000 ** (2 * i / dim) for i in range(dim // 2)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


@pytest.mark.parametrize("dim", [2, 8, 22])
def test_sincos_1d_matches_the_formula(dim):
    got = positions.sincos_1d(np.arange(500), dim)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [sincos(i, dim) for i in range(500)], atol=1e-6)


@pytest.mark.parametrize(
    ("dim", "time", "space"), [(6, 2, 2), (12, 4, 4), (16, 8, 4), (128, 44, 42)]
)
def test_sincos_3d_gives_each_axis_its_part(dim, time, space):
    got = np.asarray(positions.sincos_3d((3, 2, 4), dim))
    assert got.shape == (3, 8, dim)
    for t in range(3):
        for y in range(2):
            for x in range(4):
                expected = sincos(t, time) + sincos(y, space) + sincos(x, space)
                np.testing.assert_allclose(got[t, y * 4 + x], expected, atol=1e-6)


def test_all_positions_differ():
    table = np.asarray(positions.sincos_3d((20, 5, 5), 12)).reshape(-1, 12)
    assert len(np.unique(table.round(5), axis=0)) == 500


def test_the_table_of_a_long_video_is_not_a_constant_of_the_program():
    """480 frames of 32x32 patches at hidden size 512 take a gigabyte."""
    program = jax.make_jaxpr(lambda: positions.sincos_3d((480, 32, 32), 512))()
    assert program.out_avals[0].shape == (480, 1024, 512)
    assert sum(np.size(constant) for constant in program.consts) < 1e6


@pytest.mark.parametrize("dim", [4, 7])
def test_sizes_too_small_for_three_axes_are_rejected(dim):
    with pytest.raises(ValueError, match="even width of at least 6, not"):
        positions.sincos_3d((1, 1, 1), dim)


def test_sincos_2d_has_the_columns_first():
    """As DiT, Latte and diffusers' PatchEmbed: `# here w goes first`."""
    got = np.asarray(positions.sincos_2d((2, 3), 16))
    assert got.shape == (6, 16)
    for y in range(2):
        for x in range(3):
            np.testing.assert_allclose(got[y * 3 + x], sincos(x, 8) + sincos(y, 8), atol=1e-6)


def test_sincos_2d_requires_a_multiple_of_four():
    with pytest.raises(ValueError, match=r"model\.width is 14, but .* multiple of 4"):
        positions.sincos_2d((2, 2), 14)


@pytest.mark.parametrize(("grid", "size"), [((4, 6), None), ((4, 6), (2, 3)), ((2, 5), (4, 5))])
def test_sincos_2d_interpolates_as_diffusers(grid, size):
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    rows, columns = size or grid
    for base, axis in ((rows, 0), (columns, 1)):
        expected = embeddings.get_2d_sincos_pos_embed(16, grid, base_size=base, output_type="pt")
        half = slice(8, 16) if axis == 0 else slice(0, 8)
        got = np.asarray(positions.sincos_2d(grid, 16, size))
        np.testing.assert_allclose(got[:, half], expected.numpy()[:, half], atol=2e-6)


def test_all_tables_are_interpolated_over_the_original_range():
    """With twice the patches along an axis, every second one has a position of the original grid."""
    for table in (
        lambda grid, size: positions.sincos_2d(grid[1:], 24, size),
        lambda grid, size: positions.sincos_3d(grid, 24, size),
        positions.coordinates,
    ):
        small = np.asarray(table((2, 2, 3), None)).reshape(
            -1, 2, 3, table((2, 2, 3), None).shape[-1]
        )
        large = np.asarray(table((2, 4, 6), (2, 3))).reshape(-1, 4, 6, small.shape[-1])
        np.testing.assert_allclose(large[:, ::2, ::2], small, atol=1e-6)
        assert np.abs(large[:, 1::2, ::2] - small).max() > 0.1
        assert np.abs(large[:, ::2, 1::2] - small).max() > 0.1


def test_coordinates_are_those_of_the_token():
    got = np.asarray(positions.coordinates((3, 2, 4))).reshape(3, 2, 4, 3)
    np.testing.assert_array_equal(got, np.moveaxis(np.indices((3, 2, 4)), 0, -1))


def rotate_reference(x, position):
    """Rotary embedding pair by pair, as complex numbers in float64."""
    dim, axes = len(x), len(position)
    widths = positions.split_width(dim, axes)
    angles = [
        p / 10_000 ** (2 * i / w)
        for p, w in zip(position, widths, strict=True)
        for i in range(w // 2)
    ]
    pairs = (x[: dim // 2] + 1j * x[dim // 2 :]) * np.exp(1j * np.array(angles))
    return np.concatenate([pairs.real, pairs.imag])


@pytest.mark.parametrize(("dim", "axes"), [(8, 1), (8, 2), (6, 2), (12, 3), (16, 3)])
def test_rotate_rotates_pairs_by_their_positions(dim, axes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 3, dim)).astype(np.float32)
    tokens = rng.integers(0, 30, (2, 5, axes)).astype(np.float32)
    whole = np.asarray(positions.rotate(x, tokens))
    same = np.asarray(positions.rotate(x, tokens[0]))
    assert whole.shape == x.shape and whole.dtype == np.float32
    for n in range(5):
        for head in range(3):
            for b in range(2):
                expected = rotate_reference(np.float64(x[b, n, head]), tokens[b, n])
                np.testing.assert_allclose(whole[b, n, head], expected, atol=2e-5)
            expected = rotate_reference(np.float64(x[1, n, head]), tokens[0, n])
            np.testing.assert_allclose(same[1, n, head], expected, atol=2e-5)
    norms = np.linalg.norm(np.float64(whole), axis=-1)
    np.testing.assert_allclose(norms, np.linalg.norm(np.float64(x), axis=-1), rtol=1e-5)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_scores_depend_on_relative_positions_only(axes):
    rng = np.random.default_rng(1)
    query, key = rng.standard_normal((2, 1, 6, 2, 12)).astype(np.float32)
    tokens = rng.integers(0, 20, (6, axes)).astype(np.float32)
    shift = rng.integers(1, 9, axes).astype(np.float32)

    def scores(moved_query, moved_key):
        q, k = positions.rotate(query, moved_query), positions.rotate(key, moved_key)
        return np.einsum("bnkh,bmkh->bknm", np.float64(q), np.float64(k))

    before = scores(tokens, tokens)
    np.testing.assert_allclose(scores(tokens + shift, tokens + shift), before, atol=1e-4)
    for axis in range(axes):  # and all of them
        one = np.eye(axes, dtype=np.float32)[axis]
        assert np.abs(scores(tokens + one, tokens) - before).max() > 0.1


def test_position_zero_is_the_identity_and_the_type_is_kept():
    x = np.random.default_rng(0).standard_normal((1, 2, 1, 8))
    for dtype in (jnp.float32, jnp.bfloat16):
        value = jnp.asarray(x, dtype)
        got = positions.rotate(value, jnp.zeros((2, 2)))
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, value)


@pytest.mark.parametrize(("dim", "axes"), [(7, 1), (2, 2), (4, 3), (0, 1)])
def test_head_dimensions_that_cannot_be_divided_are_rejected(dim, axes):
    message = rf"{axes} axes need an even width of at least {2 * axes}, not {dim}: .*num_heads"
    with pytest.raises(ValueError, match=message):
        positions.rotate(jnp.zeros((1, 1, 1, dim)), jnp.zeros((1, axes)))


def test_temporal_positions_repeat_after_the_cycle():
    plain = np.asarray(positions.sincos_frames(5, 12))
    np.testing.assert_array_equal(plain, positions.sincos_1d(np.arange(5), 12))
    starts = jnp.array([0, 3, 5, 13])
    frames = starts[:, None] + jnp.arange(7)
    got = np.asarray(positions.sincos_frames(7, 12, frames, 5))
    assert got.shape == (4, 7, 12)
    for b, start in enumerate((0, 3, 5, 13)):
        for i in range(7):
            np.testing.assert_array_equal(got[b, i], plain[(start + i) % 5])
    # Without frame indices, positions start at 0.
    np.testing.assert_array_equal(positions.sincos_frames(7, 12, None, 5), got[0])


def test_temporal_positions_can_differ_between_clips():
    frames = jnp.array([[0, 1], [3, 4], [4, 5]])
    whole = np.asarray(positions.sincos_3d((4, 2, 3), 16, frames=jnp.arange(4), cycle=4))
    np.testing.assert_array_equal(whole, positions.sincos_3d((4, 2, 3), 16))
    got = np.asarray(positions.sincos_3d((2, 2, 3), 16, frames=frames, cycle=5))
    assert got.shape == (3, 2, 6, 16)
    np.testing.assert_array_equal(got[0], whole[:2])
    np.testing.assert_array_equal(got[2, 1], whole[0])
    np.testing.assert_array_equal(got[1, 0], whole[3])
