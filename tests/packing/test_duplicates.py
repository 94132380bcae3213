"""Near-duplicates: the hash against SciPy's DCT, the search against all pairs, and files made to be copies."""

import itertools
import json
import shutil

import numpy as np
import pytest
import scipy.fft
from PIL import Image

from tests.data.made_videos import write
from tests.packing.made_scenes import make_scene, make_texture
from tests.packing.test_pack import read, run, shard_bytes
from videogen_jax.data import video_io
from videogen_jax.packing import duplicate_pass, duplicates, merge_parts, per_file
from videogen_jax.packing.duplicates import Duplicate, Signature


def test_hash_is_the_median_of_the_lowest_frequencies():
    for seed in range(20):
        picture = make_texture(seed)
        luma = Image.fromarray(picture).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
        low = scipy.fft.dctn(np.asarray(luma, np.float64))[:8, :8].flatten()
        expected = "".join("1" if value > np.median(low) else "0" for value in low)
        assert f"{duplicates.hash_picture(picture):064b}" == expected


def compare(one, other):
    pairs = zip(one.hashes, other.hashes, strict=True)
    bits = max((int(a, 16) ^ int(b, 16)).bit_count() for a, b in pairs)
    colour = np.abs(np.subtract(one.colours, other.colours)).max()
    if not one.seconds or not other.seconds:
        return bits, bool(colour <= 16 and one.seconds == other.seconds)
    ratio = max(one.seconds / other.seconds, other.seconds / one.seconds)
    return bits, bool(colour <= 16 and ratio <= np.exp(0.1))


def find_one_by_one(items, distance):
    """The rule, as it is written: names in order, each against those that were kept."""
    kept, found = [], []
    for name in sorted(items):
        near = [(k, compare(items[k], items[name])) for k in kept]
        near = [(k, bits) for k, (bits, alike) in near if alike and bits <= distance]
        if near:
            found.append(Duplicate(near[0][0], name, near[0][1]))
        else:
            kept.append(name)
    return found


@pytest.mark.parametrize("rows", [7, 1000])
def test_search_equals_comparison_one_by_one_in_any_order(monkeypatch, rows):
    monkeypatch.setattr(duplicates, "_ROWS", rows)
    monkeypatch.setattr(duplicates, "_COLUMNS", 5)
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**63, (12, 3))
    items = {}
    for number in range(150):
        centre = int(rng.integers(12))
        flips = [sum(1 << int(b) for b in set(rng.integers(0, 64, rng.integers(5)))) for _ in "123"]
        hashes = [f"{int(h) ^ flip:016x}" for h, flip in zip(centres[centre], flips, strict=True)]
        colours = (40 * centre % 200 + rng.integers(0, 20, (3, 3))).tolist()
        seconds = float(rng.choice([0.0, 4.0, 4.3, 6.0]))
        items[f"{rng.integers(1000):03d}-{number}.mp4"] = Signature(9, 9, seconds, hashes, colours)
    expected = find_one_by_one(items, 6)
    assert 40 < len(expected) < 140 and len({d.kept for d in expected}) > 12
    for seed in range(3):
        names = list(np.random.default_rng(seed).permutation(sorted(items)))
        found = duplicates.find_duplicates(names, [items[name] for name in names], 6)
        assert found == expected
    assert duplicates.find_duplicates([], []) == []


def resize(video, height, width):
    return np.stack([np.asarray(Image.fromarray(f).resize((width, height))) for f in video])


def mark(video):
    """A watermark of 1 % of the picture."""
    video = video.copy()
    video[:, 50:58, 80:88] = video[:, 50:58, 80:88] // 2 + 120
    return video


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Five videos, of which the first has copies, and a damaged copy that would come first by name."""
    folder = tmp_path_factory.mktemp("videos")

    def add(name, video, **options):
        write(folder / name, video, **options)
        (folder / name).with_suffix(".txt").write_text("a texture")

    first = make_scene(1, 24, 2)
    add("b.mp4", first)
    add("copy-crf.mp4", first, options={"crf": "40"})
    add("copy-large.mkv", resize(first, 128, 192))
    add("copy-mark.mp4", mark(first))
    add("copy-codec.avi", first, codec="mpeg4")
    add("other-colour.mp4", first[..., ::-1])
    add("other-length.mp4", np.concatenate([first, first[-1:].repeat(12, 0)]))
    add("other-a.mp4", make_scene(2, 24, 2))
    add("other-b.mp4", make_scene(12, 24, 2))
    damaged = write(folder / "a.avi", first, codec="mpeg4")
    damaged.write_bytes(damaged.read_bytes()[: -damaged.stat().st_size // 5])
    (folder / "a.txt").write_text("a texture")
    return folder


OPTIONS = dict(size=32, frames=8, validation_fraction=0, workers=1, drop_duplicates=True)
COPIES = ["copy-codec.avi", "copy-crf.mp4", "copy-large.mkv", "copy-mark.mp4"]


@pytest.fixture(scope="module")
def packed(videos, tmp_path_factory):
    output = tmp_path_factory.mktemp("packed") / "data"
    return output, run(**OPTIONS, input=videos, output=output)


def names_of(output):
    folders = [path.parent for path in output.glob("**/dataset_info.json")]
    return sorted({i["source"].decode() for f in folders for i in read(f, "train")})


def test_copies_are_left_out_and_listed(videos, packed):
    output, report = packed
    assert [pair["dropped"] for pair in report["duplicates"]] == COPIES
    assert {pair["kept"] for pair in report["duplicates"]} == {"b.mp4"}
    assert all(0 <= pair["distance"] <= 8 for pair in report["duplicates"])
    assert [skip["file"] for skip in report["skipped"]] == ["a.avi"]  # which no other is a copy of
    others = ["other-a.mp4", "other-b.mp4", "other-colour.mp4", "other-length.mp4"]
    assert names_of(output) == ["b.mp4", *others]
    assert run(**OPTIONS, input=videos, output=output)["finished_before"]
    with pytest.raises(ValueError, match="drop_duplicates was True and is now False"):
        run(**OPTIONS | {"drop_duplicates": False}, input=videos, output=output)
    with pytest.raises(ValueError, match="duplicate_distance was 8 and is now 0"):
        run(**OPTIONS, duplicate_distance=0, input=videos, output=output)


def test_what_a_filter_leaves_out_is_no_original(videos, tmp_path):
    report = run(**OPTIONS, input=videos, output=tmp_path / "data", min_size=100)
    assert report["duplicates"] == [] and names_of(tmp_path / "data") == ["copy-large.mkv"]


def test_buckets_and_parts_leave_out_the_same(videos, packed, tmp_path, monkeypatch):
    buckets = {
        name: OPTIONS[name] for name in ("workers", "drop_duplicates", "validation_fraction")
    }
    report = run(**buckets, buckets="8x32x48", input=videos, output=tmp_path / "buckets")
    assert report["duplicates"] == packed[1]["duplicates"]
    asked, real = [], per_file.run
    monkeypatch.setattr(
        per_file, "run", lambda folder, found, *rest: asked.extend(found) or real(folder, found, *rest)
    )  # fmt: skip
    for part in (2, 0, 1):
        run(**OPTIONS, input=videos, output=tmp_path / "set", shard=f"{part}/3")
    assert len(asked) == 10  # the first part has read what the others need
    merged = merge_parts.merge(tmp_path / "set")
    assert merged["duplicates"] == packed[1]["duplicates"]
    assert names_of(tmp_path / "set") == names_of(packed[0])
    assert not (tmp_path / "set" / "parts").exists()


def test_a_call_that_resumes_reads_no_file_twice_and_keeps_its_decision(
    videos, packed, tmp_path, monkeypatch
):
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    output, real = tmp_path / "data", per_file.run

    def stop_after_four(*arguments):
        yield from itertools.islice(real(*arguments), 4)
        raise KeyboardInterrupt

    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(per_file, "run", stop_after_four)
        with pytest.raises(KeyboardInterrupt):
            run(**OPTIONS, input=folder, output=output)
        patch.setattr(per_file, "run", lambda f, n, *rest: asked.extend(n) or real(f, n, *rest))
        (output / "unfinished" / "train-00000.unfinished").symlink_to("/dev/full")
        with pytest.raises(OSError):
            run(**OPTIONS, input=folder, output=output)
        assert len(asked) == 10 - 4
        decided = json.loads((output / "unfinished" / "duplicates.json").read_text())
        assert [pair["dropped"] for pair in decided] == COPIES
        (output / "unfinished" / "signatures.jsonl").unlink()
        report = run(**OPTIONS, input=folder, output=output)
        assert len(asked) == 10 - 4
    assert report["duplicates"] == decided and shard_bytes(output) == shard_bytes(packed[0])


def test_images_are_compared_with_images(tmp_path):
    for name, seed in (("a.png", 1), ("b.webp", 1), ("c.png", 2)):
        Image.fromarray(make_texture(seed)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("a texture")
    write(tmp_path / "still.mp4", make_scene(1, 8, 0))
    (tmp_path / "still.txt").write_text("a texture")
    options = dict(validation_fraction=0, workers=1, drop_duplicates=True)
    output = tmp_path.parent / "images"
    report = run(**options, input=tmp_path, output=output, buckets="1x32x48,8x32x48")
    (pair,) = report["duplicates"]
    assert (pair["kept"], pair["dropped"]) == ("a.png", "b.webp")
    assert report["clips"]["train"] == 3


def test_a_dropped_validation_video_leaves_its_place_to_another(videos, tmp_path):
    options = OPTIONS | {"validation_fraction": 0.001}  # the one of the lowest hash
    listed = json.loads(json.dumps(COPIES))
    folder = tmp_path / "v"
    folder.mkdir()
    for name in ("b.mp4", "other-a.mp4", *listed):
        shutil.copy(videos / name, folder)
        shutil.copy((videos / name).with_suffix(".txt"), folder)
    buckets = {k: v for k, v in options.items() if k not in ("size", "frames")}
    report = run(**buckets, buckets="8x32x48", input=folder, output=tmp_path / "data")
    assert report["clips"] == {"train": 3, "validation": 3}


def test_signature_of_a_file_that_cannot_be_read_is_the_reason(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    assert "copy or re-encode it" in duplicate_pass.sign_file(str(tmp_path / "a.mp4"))
    assert duplicate_pass.sign_file(str(tmp_path / "b.mp4")) == "is no longer there"


def test_a_signature_is_of_the_frames_at_a_sixth_a_half_and_five_sixths(tmp_path):
    frames = make_scene(3, 31, 3)
    times = np.cumsum(np.random.default_rng(0).integers(20, 200, 31)) / 1000
    path = write(tmp_path / "a.mkv", frames, times=times - times[0])
    every = list(video_io.read_numbered_frames(path))
    length = every[-1][1] * 31 / 30  # the last frame lasts as long as the average one
    shown = [
        [frame for _, start, frame in every if start <= fraction * length][-1]
        for fraction in (1 / 6, 1 / 2, 5 / 6)
    ]
    signature = duplicate_pass.sign_file(str(path))
    assert signature.seconds == pytest.approx(length)
    assert signature.hashes == [f"{duplicates.hash_picture(frame):016x}" for frame in shown]
    assert len(set(signature.hashes)) == 3


@pytest.mark.parametrize(("count", "chosen"), [(1, (0, 0, 0)), (2, (0, 1, 1))])
def test_frames_of_a_short_video_count_more_than_once(tmp_path, count, chosen):
    path = write(tmp_path / "a.mkv", make_scene(3, 31, 3)[::20][:count])
    every = [frame for _, _, frame in video_io.read_numbered_frames(path)]
    assert len(every) == count
    hashes = [f"{duplicates.hash_picture(every[index]):016x}" for index in chosen]
    assert duplicate_pass.sign_file(str(path)).hashes == hashes
