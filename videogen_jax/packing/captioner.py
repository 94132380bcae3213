"""Captions of videos and images by a vision-language model, through transformers and PyTorch.

Any architecture that transformers' AutoModelForImageTextToText and AutoProcessor know. How it is shown a video depends
on its processor:

    video     the processor has a video processor, and its chat template takes videos: the frames with their times
    frames    the chat template takes images alone: the frames as images, in order
    stack     GIT with embeddings for several frames: as many frames as it has
    picture   there is no chat template: the middle frame

Weights are read from safetensors only, and code that comes with a model is never executed: transformers gets
trust_remote_code=False, and renders chat templates in Jinja's sandbox.
"""

import contextlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from videogen_jax.data.video_io import FrameSample

INSTALL = "pip install 'videogen-jax[caption]'"
PROMPT = (
    "Describe {subject} in three to five sentences, so that an artist could make it again from your words: who or what "
    "is in it and what they look like, {motion}where it is, the light and the colors, and how the camera sees it. Say "
    'only what can be seen, and do not begin with "The video" or "The image".'
)
MOTION = "how they move from the beginning to the end, "
SENTENCE_END = re.compile(r'[.!?]["\')\]]*(?=\s|$)|[。！？]["”’」』）]*')
REASON_LENGTH = 300  # characters of a library's message that are quoted


class CaptionError(ValueError):
    """A model makes no caption of a file; the message is the reason why."""


class Caption(NamedTuple):
    """What a model wrote of a video or an image."""

    text: str  # in one line; empty where it wrote nothing
    cut: bool  # whether it would have gone on behind the longest caption


class Captioner:
    """A vision-language model on one device, which writes captions by greedy decoding."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        frames: int,
        prompt: str | None = None,
        max_new_tokens: int = 256,
    ) -> None:
        """Finds out how the model is shown videos and images.

        Args:
          model: of transformers, on its device, which generates text.
          processor: of transformers, which prepares its inputs.
          frames: to show of a video, at most.
          prompt: what to ask; None: `PROMPT` in chat templates, and nothing where there is none.
          max_new_tokens: of a caption.
        Raises:
          ValueError: the processor takes neither videos nor images.
        """
        self.model, self.processor = model, processor
        self.prompt, self.max_new_tokens = prompt, max_new_tokens
        self.video_view, self.image_view = _choose_views(model.config, processor)
        self.frames = frames
        if self.video_view == "picture":
            self.frames = 1
        elif self.video_view == "stack":
            self.frames = model.config.num_image_with_embedding
        tokenizer = processor.tokenizer
        if not getattr(model.config, "is_encoder_decoder", False):
            tokenizer.padding_side = "left"  # the caption follows its prompt without a gap
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    def describe(self) -> str:
        """Returns how the model is shown a video, in words."""
        if self.video_view == "picture":
            return "sees one image at a time: the middle frame of a video"
        how = "as a video" if self.video_view == "video" else "as images"
        return f"sees {self.frames} frames of a video, {how}"

    def write(self, samples: Sequence[FrameSample]) -> list[Caption]:
        """Writes the captions of videos, or of images.

        Args:
          samples: all of videos with `frames` frames or, being shorter, fewer; or all of images.
        Returns:
          A caption for each; at most `max_new_tokens` tokens long, and then up to the end of its last whole sentence.
        Raises:
          CaptionError: the processor or the model takes no such input.
          ValueError: the device has too little memory.
        """
        import torch

        try:
            with torch.inference_mode():
                inputs = self.prepare(samples).to(self.model.device, self.model.dtype)
                tokens = self.model.generate(
                    **inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1
                )
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{self.model.device} has too little memory for {len(samples)} files at once: lower --batch_size, "
                "--frames or --max_new_tokens, or choose a smaller model."
            ) from error
        except Exception as error:  # whatever a processor raises of such an input
            raise CaptionError(f"the model does not take it ({_quote(error)})") from error
        tokens = getattr(tokens, "sequences", tokens)
        prompt = inputs.get("input_ids")
        if prompt is not None and torch.equal(tokens[:, : prompt.shape[1]], prompt):
            tokens = tokens[:, prompt.shape[1] :]
        texts = self.processor.post_process_image_text_to_text(tokens, skip_special_tokens=True)
        return [
            Caption(_end_sentence(clean(text)) if cut else clean(text), cut)
            for text, cut in zip(texts, self._find_cut(tokens), strict=True)
        ]

    def _find_cut(self, tokens: Any) -> list[bool]:
        """Whether each caption did not end by itself, with a special token such as the end or padding behind it."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        ends = {*self.processor.tokenizer.all_special_ids, *ends}
        return [not row or row[-1] not in ends for row in tokens.tolist()]

    def prepare(self, samples: Sequence[FrameSample]) -> Any:
        """Makes the inputs of the model; arguments as for `write`.

        Returns:
          transformers' BatchFeature of tensors on the CPU.
        """
        from PIL import Image

        image = samples[0].fps is None
        view = self.image_view if image else self.video_view
        if view is None:
            raise ValueError("it sees videos only")
        pictures = [[Image.fromarray(frame) for frame in sample.frames] for sample in samples]
        if view == "video":
            media = {
                "videos": [[sample.frames] for sample in samples],
                "videos_kwargs": {
                    "do_sample_frames": False,
                    "video_metadata": [[_describe_times(sample)] for sample in samples],
                },
            }
            contents = [[{"type": "video"}] for _ in samples]
        elif view == "frames":
            media = {"images": pictures}
            contents = [[{"type": "image"}] * len(shown) for shown in pictures]
        else:
            media = {"images": [frame for shown in pictures for frame in shown]}
            if self.prompt:
                media["text"] = [self.prompt] * len(samples)
            inputs = self.processor(**media, return_tensors="pt", padding=True)
            if view == "stack":
                if len({len(shown) for shown in pictures}) > 1:
                    raise ValueError("videos of different lengths are not stacked")
                pixels = inputs["pixel_values"]  # (B * frames, 3, H, W)
                inputs["pixel_values"] = pixels.unflatten(0, (len(samples), -1))
            return inputs
        prompt = self.prompt or default_prompt(image, view, self.frames)
        texts = [_render(self.processor, content, prompt) for content in contents]
        begin = self.processor.tokenizer.bos_token  # of which one is enough
        options = {"add_special_tokens": not (begin and texts[0].startswith(begin))}
        return self.processor(text=texts, **media, **options, return_tensors="pt", padding=True)


def default_prompt(image: bool, view: str, frames: int) -> str:
    """Returns what a model with a chat template is asked about an image or a video."""
    if image:
        return PROMPT.format(subject="this image", motion="")
    if view == "frames" and frames > 1:
        subject = "the video of which these images are frames, in order,"
    elif view == "frames":
        subject = "the video of which this is a frame"
    else:
        subject = "this video"
    return PROMPT.format(subject=subject, motion=MOTION if frames > 1 else "")


def load(
    name: str, *, device: str | None = None, dtype: str | None = None, **options: Any
) -> Captioner:
    """Loads a model and its processor.

    Args:
      name: a local folder, or owner/repository on the Hugging Face hub.
      device: as torch spells it; None: a GPU if there is one.
      dtype: name of torch's type of the weights; None: bfloat16 on a GPU (float16 on one without it), else float32.
      options: of `Captioner`.
    Returns:
      The captioner.
    Raises:
      ValueError: transformers is not installed, the model has no safetensors, needs code of its own, is of another
        kind, damaged or not there, or the device does not exist.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        missing = error.name or "transformers"
        raise ValueError(f"captions need {missing}, which is not installed: {INSTALL}.") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # of seconds, while weights are loaded
    place = _find_device(device)
    if dtype is None:
        dtype = "float32" if place.type == "cpu" else "bfloat16"
        if place.type == "cuda" and not torch.cuda.is_bf16_supported():
            dtype = "float16"
    with _explain_failure(name):
        processor = transformers.AutoProcessor.from_pretrained(name, trust_remote_code=False)
        model, report = transformers.AutoModelForImageTextToText.from_pretrained(
            name,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{name} lacks the weights of {len(missing)} parameters, such as {missing[0]}: copy its files again."
        )
    if not hasattr(processor, "tokenizer"):
        raise ValueError(
            f"{name} has no processor for both text and images: choose a model that transformers lists under "
            "image-text-to-text."
        )
    try:
        model = model.to(place)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{place} has too little memory for {name} in {dtype}: choose a smaller model, or --dtype=bfloat16."
        ) from error
    return Captioner(model, processor, **options)


def clean(text: str) -> str:
    r"""Joins a text to one line, without control characters and letters that could not be decoded.

    >>> clean(" A dog\n runs.\x07 ")
    'A dog runs.'
    """
    words = " ".join(text.split())
    return "".join(c for c in words if c != "\ufffd" and unicodedata.category(c) != "Cc").strip()


def _end_sentence(text: str) -> str:
    """Leaves out the last sentence of a text, which is not whole, unless it is the only one."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def _choose_views(config: Any, processor: Any) -> tuple[str, str | None]:
    """Returns how a model is shown videos and images; the latter is None where it sees videos only."""
    images = hasattr(processor, "image_processor")
    if getattr(processor, "chat_template", None):
        takes_images = images and _takes(processor, "image")
        if hasattr(processor, "video_processor") and _takes(processor, "video"):
            return "video", "frames" if takes_images else None
        if takes_images:
            return "frames", "frames"
    elif images:
        stacks = (getattr(config, "num_image_with_embedding", None) or 1) > 1
        return "stack" if stacks else "picture", "picture"
    raise ValueError(
        f"{type(processor).__name__} takes neither images nor videos with a chat template, nor images without one: "
        "choose another model."
    )


def _takes(processor: Any, kind: str) -> bool:
    """Whether a chat template has a place for images or videos."""
    try:
        return _render(processor, [{"type": kind}], "") != _render(processor, [], "")
    except Exception:  # a template refuses in its own words, or fails on what it does not expect
        return False


def _render(processor: Any, content: list[dict[str, str]], prompt: str) -> str:
    message = {"role": "user", "content": [*content, {"type": "text", "text": prompt}]}
    return processor.apply_chat_template([message], add_generation_prompt=True)


def _describe_times(sample: FrameSample) -> Any:
    from transformers.video_utils import VideoMetadata

    return VideoMetadata(
        total_num_frames=sample.num_frames,
        fps=sample.fps,
        duration=sample.num_frames / sample.fps,
        height=sample.frames.shape[1],
        width=sample.frames.shape[2],
        frames_indices=list(sample.indices),
    )


def _find_device(name: str | None) -> Any:
    """Returns a device of torch that exists."""
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
        name = "mps" if name == "cpu" and torch.backends.mps.is_available() else name
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"PyTorch has no device {name!r} here ({_quote(error)}): set --device=cpu, or one that it has."
        ) from error
    return device


@contextlib.contextmanager
def _explain_failure(name: str) -> Iterator[None]:
    """Turns what transformers raises for a model that it cannot load into a sentence."""
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"{name} needs a package that is not installed ({_quote(error)}): {INSTALL}."
        ) from error
    except Exception as error:  # of several libraries
        text = str(error)
        if "trust_remote_code" in text or "custom code" in text:
            raise ValueError(
                f"{name} needs Python code of its own, which is not executed: choose a model whose architecture "
                "transformers has, or the version of it that is converted for transformers."
            ) from error
        if isinstance(error, OSError) and "safetensors" in text:
            raise ValueError(
                f"{name} has no safetensors, and pickled weights are not read: convert them with safetensors, or "
                "choose a model that has some."
            ) from error
        raise ValueError(
            f"{name} cannot be loaded ({_quote(error)}): give the folder or name of a whole model that transformers "
            "lists under image-text-to-text."
        ) from error


def _quote(error: BaseException) -> str:
    """Returns the beginning of a library's message, in one line, without the stop at its end."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= REASON_LENGTH else f"{text[:REASON_LENGTH]}...").rstrip(".:")
