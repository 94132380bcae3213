"""Writes captions beside the videos and images of a folder that have none; the work behind `caption`.

The caption of name.mp4 goes to name.txt, atomically. A caption that is there is never overwritten, but for those that
`caption_log` knows to be a model's; so a call that was stopped is resumed by the same call.
"""

import dataclasses
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from videogen_jax.data import image_io, video_io
from videogen_jax.data.locking import lock_folder
from videogen_jax.data.prefetch import prefetch_to_mesh
from videogen_jax.data.progress import show_progress
from videogen_jax.data.video_io import FrameSample
from videogen_jax.packing import input_forms, media_files, sidecars, sources
from videogen_jax.packing.caption_log import CaptionLog
from videogen_jax.packing.captioner import Caption, Captioner, CaptionError
from videogen_jax.packing.extraction import describe_failure
from videogen_jax.packing.sidecars import MAX_CAPTION_BYTES, SidecarError

MAX_FAILURES = 16  # files of which a model made no caption, before it made any


def caption_folder(
    folder: str | os.PathLike,
    load: Callable[[], Captioner],
    settings: Mapping[str, Any],
    *,
    batch_size: int,
    overwrite: bool = False,
    strict: bool = False,
    follow_links: bool = False,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Captions the videos and images of a folder that have no captions, or resumes a call that was stopped.

    Args:
      folder: folder of the files, in which the captions are written.
      load: loads the model; called if there is anything to caption.
      settings: what the captions depend on, as JSON values, for the log.
      batch_size: files at once.
      overwrite: write captions again that were written with other settings and have not been changed since.
      strict: stop at the first file that would be skipped.
      follow_links: as for `media_files.list_files`.
      progress: whether a bar is drawn, as for `show_progress`.
    Returns:
      {"written", "present", "cut", "skipped", "seconds"}: captions written; files that had one; captions that reached
      the greatest length; {"file", "reason"} of each file that was skipped; and seconds.
    Raises:
      ValueError: there is nothing to caption, the folder has metadata, the model makes no captions, `strict` found a
        file to skip, or another process is writing to the folder.
      OSError: the folder cannot be written to.
    """
    started = time.monotonic()
    names, unreadable = media_files.list_files(folder, follow_links)
    if found := input_forms.find_metadata(pathlib.Path(folder), follow_links):
        raise ValueError(
            f"{folder} has {found}, beside which pack takes no caption files: move it elsewhere to caption the videos, "
            "or write their captions into it."
        )
    with lock_folder(folder), CaptionLog(folder, settings) as log:
        job = _Job(pathlib.Path(folder), log, overwrite, strict, follow_links)
        for name, reason in sorted(unreadable.items()):
            job.skip(name, reason)
        wanted = job.choose(_one_for_each_caption(names))
        if wanted:
            captioner = load()
            batches = _read_batches(folder, wanted, captioner.frames, batch_size)
            with (
                prefetch_to_mesh(batches, lambda batch: batch, depth=1) as ready,
                show_progress("Captioning", len(wanted), "file", progress) as advance,
            ):
                for batch in ready:
                    job.caption(batch, captioner)
                    advance(len(batch.samples) + len(batch.unreadable))
    skipped = [{"file": name, "reason": reason} for name, reason in job.skipped.items()]
    counts = {"written": job.written, "present": job.present, "cut": job.cut}
    return counts | {"skipped": skipped, "seconds": round(time.monotonic() - started, 1)}


class _Batch(NamedTuple):
    """Videos, or images, that are captioned at once."""

    samples: dict[str, FrameSample]
    unreadable: dict[str, str]  # other files met on the way -> why they cannot be read


@dataclasses.dataclass
class _Job:
    """One call of `caption_folder`: its options, and what it has done."""

    folder: pathlib.Path
    log: CaptionLog
    overwrite: bool
    strict: bool
    follow_links: bool
    written: int = 0
    present: int = 0
    cut: int = 0
    refused: int = 0  # files of which the model made no caption
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def choose(self, names: Sequence[str]) -> list[str]:
        """Returns the files that need a caption; counts those that have one, and skips those of unusable ones."""
        wanted = []
        for name in names:
            try:
                needed = self._needs_caption(name)
            except SidecarError as error:
                self.skip(name, str(error))
                continue
            wanted += [name] if needed else []
            self.present += not needed
        return wanted

    def caption(self, batch: _Batch, captioner: Captioner) -> None:
        """Writes the captions of a batch."""
        for name, reason in batch.unreadable.items():
            self.skip(name, reason)
        results = _try_to_caption(captioner, list(batch.samples.values()))
        for name, result in zip(batch.samples, results, strict=True):
            if reason := _find_fault(result):
                self.refused += 1
                self.skip(name, reason)
                if self.refused >= MAX_FAILURES and not self.written:
                    raise ValueError(
                        f"the model made no caption of the first {self.refused} files ({name}: {reason}): choose "
                        "another --model, or another --prompt."
                    )
            else:
                self._write(name, result)

    def skip(self, name: str, reason: str) -> None:
        """Leaves out a file."""
        if self.strict:
            sources.refuse_skipped(name, reason)
        self.log.skip(name, reason)
        self.skipped[name] = reason

    def _write(self, name: str, caption: Caption) -> None:
        try:
            needed = self._needs_caption(name)  # still, for somebody may have written one
        except SidecarError:
            needed = False
        if not needed:
            self.present += 1
            return
        self.log.write(name, self._caption_path(name), caption.text)
        self.written += 1
        self.cut += caption.cut

    def _needs_caption(self, name: str) -> bool:
        path = pathlib.Path(media_files.locate(self.folder, name))
        if not sidecars.has_captions(path, self.folder, self.follow_links):
            return True
        return self.overwrite and self.log.is_outdated(name, self._caption_path(name))

    def _caption_path(self, name: str) -> pathlib.Path:
        return pathlib.Path(media_files.locate(self.folder, name)).with_suffix(".txt")


def _one_for_each_caption(names: Sequence[str]) -> list[str]:
    """Leaves out files whose caption is another's: the image beside a video of that name, which may be its poster."""
    chosen: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (image_io.is_image(name), name)):
        chosen.setdefault(os.path.splitext(name)[0], name)
    return sorted(chosen.values())


def _read_batches(
    folder: str | os.PathLike, names: Sequence[str], frames: int, batch_size: int
) -> Iterator[_Batch]:
    """Yields batches of videos and batches of images, each at most `batch_size`; every name is in one of them."""
    waiting: dict[bool, dict[str, FrameSample]] = {False: {}, True: {}}
    unreadable: dict[str, str] = {}
    for name in names:
        path, image = media_files.locate(folder, name), image_io.is_image(name)
        try:
            waiting[image][name] = _read_image(path) if image else _read_video(path, frames)
        except Exception as error:  # whatever a decoder raises is the fault of this file alone
            unreadable[name] = describe_failure(path, error)
        if len(waiting[image]) == batch_size:
            yield _Batch(waiting[image], unreadable)
            waiting[image], unreadable = {}, {}
    for samples in waiting.values():
        if samples or unreadable:
            yield _Batch(samples, unreadable)
            unreadable = {}


def _read_video(path: str, frames: int) -> FrameSample:
    return video_io.sample_frames(path, frames, threads=0, on_cut=lambda sentence: None)


def _read_image(path: str) -> FrameSample:
    return FrameSample(image_io.read_image(path)[None], (0,), 1, None)


def _try_to_caption(captioner: Captioner, samples: Sequence[FrameSample]) -> list[Caption | str]:
    """Returns the caption of each sample, or why it has none: one that is not taken does not spoil the others."""
    if not samples:
        return []
    try:
        return list(captioner.write(samples))
    except CaptionError as error:
        if len(samples) == 1:
            return [str(error)]
        return [_try_to_caption(captioner, [sample])[0] for sample in samples]


def _find_fault(result: Caption | str) -> str | None:
    """Returns why a caption cannot be used."""
    if isinstance(result, str):
        return result
    if not re.search(r"\w", result.text):
        return f"the model wrote {result.text!r}" if result.text else "the model wrote nothing"
    if (size := len(result.text.encode())) > MAX_CAPTION_BYTES:
        return f"the model wrote {size} bytes, more than the {MAX_CAPTION_BYTES} of a caption"
    return None
