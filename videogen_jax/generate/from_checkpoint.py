"""A trained model that makes videos: captions and seeds in, videos out. The Python API, and what `sample` runs on."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from videogen_jax import __version__
from videogen_jax import config as configs
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.data.vocabulary import split_words
from videogen_jax.generate import known_frames, run_rollout, run_sampler
from videogen_jax.generate.generator import make_generator
from videogen_jax.generate.known_frames import Frames
from videogen_jax.generate.rollout import Rollout, roll
from videogen_jax.generate.run_rollout import Plan
from videogen_jax.generate.sampler_settings import SamplerSettings
from videogen_jax.models.chunks import to_pixels
from videogen_jax.models.parameter_paths import combine, list_paths, split
from videogen_jax.run import (
    checkpoint,
    ema_snapshots,
    export_folder,
    saved_config,
    text_conditioning,
)
from videogen_jax.run.merged_lora import merge_lora
from videogen_jax.run.model import Model, choose_mesh, make_model, make_sampling_mesh

ROWS = 16  # videos at a time unless a batch size is given

Timeline = Sequence[tuple[int, str]]  # first frame (from 0, rising) and caption


def load(
    workdir: str | Path,
    *,
    step: int | None = None,
    ema: str | None = None,
    ema_width: float | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
) -> "VideoModel":
    """Restores a moving average of a run, or an export, on all devices; what is on disk is only read.

    Args:
      workdir: of the run; or the folder of an export, or its name on the Hugging Face hub, `owner/repository`.
      step: of the checkpoint; by default the newest. Of an export: that of its weights.
      ema: name of the moving average; by default the first one.
      ema_width: relative width of a power-function average to reconstruct from the run's snapshots instead.
      dtype: of the matrix products; by default the config's.
      batch_size: videos at a time; by default the number of prompts, up to 16.
    Returns:
      The model.
    Raises:
      ValueError: the run is one of an autoencoder, or an argument does not fit it; the sentence says how.
      OSError: there is no run or no checkpoint, or weights that the run needs cannot be read.
    """
    if ema is not None and ema_width is not None:
        raise ValueError(
            "ema names an average and ema_width reconstructs one: give one of --ema and --ema_width."
        )
    if batch_size is not None:
        batch_size = configs.check_option("sample.batch_size", batch_size)
    export = export_folder.open_export(workdir) if export_folder.is_export(workdir) else None
    workdir = Path(workdir)
    config = saved_config.read_config(workdir) if export is None else export.config
    if configs.is_autoencoder(config):
        raise ValueError(
            f"{workdir} is the {'run' if export is None else 'export'} of an autoencoder, which makes no videos by "
            f"itself: name the {'--workdir' if export is None else 'export'} of a diffusion model."
        )
    if dtype is not None:
        with config.unlocked():
            config.train.precision = configs.check_option("train.precision", dtype)
    if export is not None:
        export.check_choice(step, ema, ema_width)
        given = (workdir, config, export.step, export.metadata, export.put_params)
        return _load_step(*given, average=export.weights, batch_size=batch_size)
    average = f"width {ema_width}" if ema_width is not None else ema

    def read(step: int, metadata: dict[str, Any]) -> VideoModel:
        restore = functools.partial(
            restore_average, workdir=workdir, step=step, ema=ema, ema_width=ema_width
        )
        given = (workdir, config, step, metadata, restore)
        return _load_step(*given, average=average, batch_size=batch_size)

    return checkpoint.read_newest(workdir, step, read)


def _load_step(
    workdir: Path,
    config: ml_collections.ConfigDict,
    step: int,
    metadata: dict[str, Any],
    restore: Callable[[Model], Any],
    *,
    average: str | None,
    batch_size: int | None,
) -> "VideoModel":
    """The model of a step.

    Args:
      workdir: for the recipe.
      config: of the run.
      step: optimizer steps.
      metadata: saved with them.
      restore: the model to its parameters, laid out on its mesh.
      average: what the recipe calls these; None for the first moving average.
      batch_size: as of `load`.
    Returns:
      The model.
    Raises:
      DamagedError: the step is damaged, or was deleted meanwhile.
    """
    texts = text_conditioning.restore_texts(config.text, metadata)
    latents = metadata.get("latents")
    latents = latents and LatentInfo(**latents)
    devices = jax.devices()
    mesh = make_sampling_mesh(config, batch_size or len(devices), devices)
    model = make_model(config, mesh, texts.null)
    if latents is not None:
        model.latent_space.load(latents)  # missing or other weights are an error now
    model, params = merge_lora(model, restore(model))
    recipe = {
        "workdir": str(workdir),
        "step": step,
        "weights": average or model.ema_names[0],
        "dtype": config.train.precision,
        "version": __version__,
    }
    return VideoModel(model, params, texts, latents, batch_size, recipe)


def restore_average(
    model: Model, workdir: Path, step: int, ema: str | None = None, ema_width: float | None = None
) -> Any:
    """A run's moving average, laid out on the model's mesh.

    Raises:
      CheckpointError: it is not there, or another model's.
    """
    abstract = model.abstract_params
    if ema_width is not None:
        widths = model.config.ema.widths
        directory = Path(workdir) / "checkpoints" / str(step)
        frozen = checkpoint.read_frozen(directory.resolve(), abstract)
        trained, _ = split(abstract, list_paths(frozen))
        params = ema_snapshots.reconstruct(workdir, trained, widths, ema_width, step)
        return jax.device_put(combine(params, frozen), model.param_shardings)
    with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
        return checkpoint.restore_ema(manager, abstract, ema or model.ema_names[0], step)[0]


class VideoModel:
    """A trained model: `model(["a red circle moving left"], seeds=[0])` gives (1, T, H, W, 3) uint8.

    A video depends on its prompt, seed and settings only, and not on the others that are made with it.
    """

    def __init__(
        self,
        model: Model,
        params: Any,
        texts: text_conditioning.Texts,
        latents: LatentInfo | None,
        batch_size: int | None,
        recipe: dict[str, Any],
    ):
        self.model, self.params, self.texts, self.latents = model, params, texts, latents
        self.batch_size = batch_size
        self.settings = SamplerSettings(**model.sampling)
        self._recipe = recipe
        self._rows: dict[str, Any] = {}  # embedding of each caption so far
        self._generators: dict[Any, Any] = {}
        self._rollouts: dict[Any, Any] = {}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, 3) of a video."""
        return (*self.model.clip_shape, 3)

    @property
    def fps(self) -> float:
        """Frames per second of its videos."""
        return self.model.fps

    @property
    def step(self) -> int:
        """Optimizer steps that the weights were trained for."""
        return self._recipe["step"]

    def __call__(self, prompts: Sequence[str], **options: Any) -> np.ndarray:
        """Makes videos; the arguments are those of `iterate`.

        Returns:
          (B, T, H, W, 3) uint8.
        """
        return np.concatenate(list(self.iterate(prompts, **options)))

    def iterate(self, prompts: Sequence[str], **options: Any) -> Iterator[np.ndarray]:
        """Makes any number of videos, a batch at a time: those of `plan_batches`, one after the other.

        Returns:
          An iterator over (B, T, H, W, 3) uint8, in order.
        Raises:
          ValueError: a prompt, frame or setting does not fit the model; the sentence says how.
        """
        return (make() for _, make in self.plan_batches(prompts, **options))

    def plan_batches(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        first_frame: np.ndarray | Sequence[np.ndarray] | None = None,
        known_frames: Frames | Sequence[Frames] | None = None,
        negative_prompt: str = "",
        motion: float | None = None,
        **settings: Any,
    ) -> list[tuple[range, Callable[[], np.ndarray]]]:
        """Splits videos into batches and checks that they can be made; none is made yet.

        A batch has the same videos whether the others are made or not.

        Args:
          prompts: N captions.
          seeds: N seeds; by default 0 to N - 1.
          first_frame: image (h, w, 3) uint8 that all videos begin with, or N of them.
          known_frames: number of a frame, from 0, to the image that all videos show there; or N such mappings.
          negative_prompt: what the videos shall not show.
          motion: bucket of the motion score, 0 to 255; by default the config's.
          **settings: fields of `SamplerSettings` in the place of the config's, such as guidance_scale.
        Returns:
          (numbers of the batch's videos, function that makes them: (B, T, H, W, 3) uint8) of each batch, in order.
        Raises:
          ValueError: a prompt, frame or setting does not fit the model; the sentence says how.
        """
        prompts, seeds = _check_prompts(prompts, seeds)
        self._check_words([*prompts, negative_prompt])
        known = _merge_frames(first_frame, known_frames, len(prompts))
        known_frames_of = [known] if isinstance(known, Mapping) else list(known)
        self._check_known(known_frames_of)
        chosen = self.choose_settings(len(prompts), **settings)
        _, null_text = self.embed(list(dict.fromkeys(prompts)), negative_prompt)
        key = (chosen, negative_prompt)
        if key not in self._generators:
            programs = run_sampler.make_run_programs(self.model, chosen, null_text)
            self._generators[key] = programs.batch_size, make_generator(programs)
        rows, generate = self._generators[key]
        motion = self._choose_motion(motion)
        is_shared = len(known_frames_of) == 1 and known_frames_of[0]
        shared = self._encode_known(known_frames_of) if is_shared else None
        logging.info(
            "Sampling from step %d on %d devices, %d videos at a time.",
            *(self.step, self.model.mesh.size, min(rows, len(prompts))),
        )

        def make(part: range) -> np.ndarray:
            own_seeds = [seeds[index] for index in part]
            text, _ = self.embed([prompts[index] for index in part], negative_prompt)
            condition = run_sampler.make_condition(self.model, text, motion)
            if any(known_frames_of):
                # Of different frames only those of a batch are in memory.
                own = shared or self._encode_known([known_frames_of[index] for index in part])
                condition |= self._condition_on(own, own_seeds)
            return self._decode(generate(self.params, condition, own_seeds))

        parts = [
            range(start, min(start + rows, len(prompts))) for start in range(0, len(prompts), rows)
        ]
        return [(part, functools.partial(make, part)) for part in parts]

    def stream(
        self,
        prompts: Sequence[str | Timeline],
        num_frames: int,
        *,
        seeds: Sequence[int] | None = None,
        first_frame: np.ndarray | None = None,
        chunk: int | None = None,
        prefix: int | None = None,
        negative_prompt: str = "",
        motion: float | None = None,
        **settings: Any,
    ) -> Iterator[np.ndarray]:
        """Makes a batch of long videos chunk by chunk; memory does not grow with their length.

        Args:
          prompts: B captions, or for a caption that changes on the way (first frame, caption) pairs from frame 0 on; a
            chunk follows the caption of its first frame.
          num_frames: of each video.
          seeds: B seeds; by default 0 to B - 1.
          first_frame: image (h, w, 3) uint8 that all videos begin with.
          chunk: latent frames generated at a time; by default the config's.
          prefix: latent frames that are cached; by default the most that the model was trained with.
          negative_prompt: what the videos shall not show.
          motion: bucket of the motion score, 0 to 255; by default the config's.
          **settings: fields of `SamplerSettings` in the place of the config's.
        Returns:
          An iterator over the next frames of all videos, (B, n, H, W, 3) uint8.
        Raises:
          ValueError: the model makes no long videos, or something does not fit it; the sentence says how.
        """
        prompts, seeds = _check_prompts(prompts, seeds)
        timelines = [[(0, entry)] if isinstance(entry, str) else list(entry) for entry in prompts]
        _check_timelines(timelines, num_frames)
        plan = run_rollout.plan_rollout(self.model, chunk, prefix)
        continues_image = run_rollout.begins_with_image(self.model, plan, first_frame is not None)
        chosen = self.choose_settings(len(prompts), **settings)
        if len(prompts) > chosen.batch_size:
            raise ValueError(
                f"{len(prompts)} long videos are more than the batch size of {chosen.batch_size}: make some at a time."
            )
        captions = sorted({caption for timeline in timelines for _, caption in timeline})
        self._check_words([*captions, negative_prompt])
        text, null_text = self.embed(captions, negative_prompt)
        given = int(continues_image)
        key = (plan, chosen, negative_prompt, given)
        if key not in self._rollouts:
            self._rollouts[key] = self._make_rollout(plan, chosen, null_text, given)
        rollout, params, decode = self._rollouts[key]
        run_rollout.warn_of_hidden_frames(plan, given)
        count = run_rollout.count_chunks(self.model, plan, num_frames, given)
        shape = run_rollout.chunk_shape(self.model, plan)
        motion = self._choose_motion(motion)
        image, mask = None, None
        if first_frame is not None:
            image, mask = known_frames.encode_known(self.model, self.latents, [{0: first_frame}])
            image, mask = image[:, : shape[0]], mask[:, : shape[0]]
        # The last batch of several is filled up, so that all run the same program.
        filled = np.resize(np.arange(len(prompts)), rollout.batch_size)
        row_seeds = [seeds[i] for i in filled]

        def condition_of(number: int) -> dict[str, Any]:
            frame = run_rollout.first_frame(self.model, given + number * shape[0])
            index = np.array([captions.index(find_caption(timelines[i], frame)) for i in filled])
            rows = jax.tree.map(lambda column: column[index], text)
            condition = run_sampler.make_condition(self.model, rows, motion, shape)
            if image is not None and not continues_image and number == 0:
                frames = (np.repeat(array, len(filled), axis=0) for array in (image, mask))
                condition |= known_frames.condition_on_frames(self.model, *frames, row_seeds)
            return condition

        beginning = np.repeat(image[:, :1], len(filled), axis=0) if continues_image else None

        def make() -> Iterator[np.ndarray]:
            left = num_frames
            chunks = roll(rollout, params, condition_of, np.array(row_seeds), count, beginning)
            if beginning is not None:
                pixels = self.latents is None
                first = np.asarray(to_pixels(beginning)) if pixels else beginning
                chunks = itertools.chain([first], chunks)
            for frames in decode(video[: len(prompts)] for video in chunks):
                frames = frames[:, :left]
                left -= frames.shape[1]
                yield frames
                if not left:
                    return

        return make()

    def embed(self, captions: Sequence[str], negative_prompt: str = "") -> tuple[Any, Any]:
        """Embeddings of captions, tree of rows of N, and of the negative prompt, without the batch axis.

        Each caption is embedded once: embed those of many batches ahead, so that the encoder's weights are read once.

        Raises:
          ValueError: the model cannot read a caption.
        """
        wanted = [*captions, negative_prompt]
        if missing := [one for one in dict.fromkeys(wanted) if one not in self._rows]:
            rows = self.texts.embed(missing)
            for i, caption in enumerate(missing):
                self._rows[caption] = jax.tree.map(lambda column, i=i: column[i], rows)
        rows = [self._rows[caption] for caption in captions]
        stacked = jax.tree.map(lambda *columns: np.stack(columns), *rows)
        return stacked, self._rows[negative_prompt]

    def choose_settings(self, count: int, **changes: Any) -> SamplerSettings:
        """The config's settings with changes, for `count` videos."""
        rows = min(ROWS, count) if self.batch_size is None else self.batch_size
        return self.settings.replace(**{"batch_size": rows} | changes)

    def describe(
        self, settings: SamplerSettings, negative_prompt: str = "", motion: float | None = None
    ) -> dict[str, Any]:
        """What is needed to make videos again, besides prompts and seeds: JSON values."""
        chosen = {name: value for name, value in vars(settings).items() if name != "batch_size"}
        if settings.eta is None:
            del chosen["eta"]
        recipe = self._recipe | {"negative_prompt": negative_prompt}
        return recipe | {"motion": self._choose_motion(motion)} | chosen

    def describe_rollout(self, num_frames: int, chunk: int | None, prefix: int | None) -> dict:
        """What `describe` lacks of long videos: JSON values."""
        plan = run_rollout.plan_rollout(self.model, chunk, prefix)
        return {
            "num_frames": num_frames,
            "chunk": plan.chunk,
            "prefix_lengths": list(plan.lengths),
            "prefix_noise": self.model.config.prefix.sampling_noise,
        }

    @functools.cached_property
    def _decode(self) -> Any:
        return self.model.latent_space.make_decode(self.latents)

    def _make_rollout(
        self, plan: Plan, settings: SamplerSettings, null_text: Any, given: int
    ) -> tuple[Rollout, Any, Any]:
        """The rollout on a mesh that suits its chunks, the parameters there, and the decoder of its chunks."""
        options, grid = self.model.config.model, run_rollout.chunk_grid(self.model, plan)
        devices = list(self.model.mesh.devices.flat)
        mesh = choose_mesh(settings.batch_size, devices, grid, "factorized", options.num_heads)
        model = make_model(self.model.config, mesh, self.model.null_text, grid)
        logging.info(
            "Making long videos from step %d in chunks of %d latent frames, on %d devices.",
            *(self.step, plan.chunk, mesh.size),
        )
        rollout = run_rollout.make_run_rollout(model, plan, settings, null_text)
        params = jax.device_put(self.params, model.param_shardings)
        # With a given first latent frame, chunks begin behind it.
        frames = 1 if given else run_rollout.chunk_shape(model, plan)[0]
        return rollout, params, model.latent_space.make_decode_arriving(self.latents, frames)

    def _check_known(self, known: Sequence[Frames]) -> None:
        known_frames.check_known(self.model, known)
        if not any(known) and not self.model.config.tasks.text:
            raise ValueError(
                "This model never learned videos from their caption alone (tasks.text=0): give it a first frame "
                "(--image), or --num_frames where it continues one."
            )

    def _check_words(self, captions: Sequence[str]) -> None:
        if self.model.config.text.encoder != "words":
            return
        for caption in filter(None, dict.fromkeys(captions)):
            if not split_words(caption):
                raise ValueError(
                    f'The prompt {caption!r} has no word: write "" for a video without a caption.'
                )

    def _encode_known(self, known: Sequence[Frames]) -> tuple[np.ndarray, np.ndarray]:
        return known_frames.encode_known(self.model, self.latents, known)

    def _condition_on(
        self, encoded: tuple[np.ndarray, np.ndarray], seeds: Sequence[int]
    ) -> dict[str, Any]:
        frames = (np.repeat(part, len(seeds) // len(part), axis=0) for part in encoded)
        return known_frames.condition_on_frames(self.model, *frames, seeds)

    def _choose_motion(self, motion: float | None) -> float:
        chosen = self.model.config.sample.motion if motion is None else motion
        return configs.check_option("sample.motion", chosen)


def find_caption(timeline: Timeline, frame: int) -> str:
    """The caption of a frame: the last one whose own frame is this one or earlier."""
    return [caption for first, caption in timeline if first <= frame][-1]


def _check_prompts(prompts: Sequence[Any], seeds: Sequence[int] | None) -> tuple[list, list[int]]:
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"The prompts are {prompts!r}: give a list of one or more.")
    seeds = list(range(len(prompts))) if seeds is None else list(seeds)
    if len(seeds) != len(prompts):
        raise ValueError(f"There are {len(seeds)} seeds for {len(prompts)} prompts: give one each.")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"There is no seed {seed}: give whole numbers from 0 to {2**32 - 1}.")
    return list(prompts), seeds


def _check_timelines(timelines: Sequence[Timeline], num_frames: int) -> None:
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}: give a number at least 1.")
    for timeline in timelines:
        firsts = [first for first, _ in timeline]
        if firsts[:1] != [0] or sorted(set(firsts)) != firsts:
            raise ValueError(
                f"The captions of a video begin at its frames {firsts}: begin with 0, and let them rise."
            )


def _merge_frames(
    first: np.ndarray | Sequence[np.ndarray] | None,
    known: Frames | Sequence[Frames] | None,
    count: int,
) -> Frames | list[Frames]:
    """The known frames of all videos, or of each."""
    firsts = [first] if first is None or getattr(first, "ndim", 0) == 3 else list(first)
    mappings = [known or {}] if known is None or isinstance(known, Mapping) else list(known)
    for name, given in (("first_frame", firsts), ("known_frames", mappings)):
        if len(given) not in (1, count):
            raise ValueError(
                f"{name} has {len(given)} entries for {count} prompts: give one for all, or one for each."
            )
    if any(0 in mapping for mapping in mappings) and first is not None:
        raise ValueError("Frame 0 is given by first_frame and by known_frames: leave one out.")
    each = max(len(firsts), len(mappings))
    firsts, mappings = firsts * (each // len(firsts)), mappings * (each // len(mappings))
    merged = [
        dict(mapping) if image is None else dict(mapping) | {0: image}
        for image, mapping in zip(firsts, mappings, strict=True)
    ]
    return merged if each > 1 else merged[0]
