"""The extractor `hf:<model id or directory>`: image and video networks of `transformers`.

The model's own image processor prepares frames, with its Pillow backend. A model that has a video processor alone
(V-JEPA 2) gets the same steps from that processor's values, with Pillow's resize in place of torchvision's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mmn_fast.arrays import Float32, Uint8
from mmn_fast.errors import InputError
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.extractors.clips import DEFAULT_BATCH, ClipExtractor
from mmn_fast.features.extractors.hf_files import Files, find_files
from mmn_fast.features.extractors.hf_outputs import Outputs
from mmn_fast.features.extractors.options import ExtractorOptions
from mmn_fast.features.extractors.steps import FILTER_NUMBERS, FrameSteps, need_pillow
from mmn_fast.features.messages import first_line
from mmn_fast.precisions import torch_dtype

IMAGE_FPS = 2.0
"""Default of image models: two rows a second."""
VIDEO_FPS = 8.0
"""Default of video models; their clips overlap by half."""
_PRECISIONS = ("fp32", "bf16", "fp16")


class HfExtractor(ClipExtractor):
    """Runs a network of `transformers`.

    Args:
        place: a directory as `save_pretrained` writes it, or a hub id.
        options: all of them; `output` is one of the names that `Outputs` gives.

    Raises:
        InputError: a package is missing, the model or its processor cannot be loaded, its file lacks weights, or an
            option cannot be used.
    """

    def __init__(self, place: str, options: ExtractorOptions) -> None:
        files = find_files(place)
        need_pillow()
        self._device = _device(options.device)
        precision = "fp32" if options.precision == "auto" else options.precision
        if precision not in _PRECISIONS:
            raise InputError(f"precision: expected auto, {', '.join(_PRECISIONS)}, got {options.precision!r}")
        self._dtype = torch_dtype(precision)
        self._threads = options.threads
        self.threads = options.threads or 0
        self.batch_size = options.batch_size or DEFAULT_BATCH
        with _quietly():
            self._prepare, steps = _processor(files)
            model, missing = _model(files)
        model = model.to(self._device, self._dtype).eval()
        length = _clip_length(model.config)
        self._of_clips = length is not None
        if length is not None and options.clip_frames not in (None, length):
            raise InputError(f"clip_frames: {place} takes clips of {length} frames, got {options.clip_frames}")
        clip_frames = length or options.clip_frames or 1
        self._outputs = Outputs(model, self._of_clips, missing, place)
        frame = self.prepare(np.zeros((256, 320, 3), np.uint8))
        black = np.repeat(frame[None], clip_frames, axis=0)[None]
        output, width = self._infer(lambda: self._outputs.choose(self._batch(black), options.output))
        self._output = output
        self.contract = FeatureContract(
            f"hf:{files.name}",
            options.fps or (VIDEO_FPS if self._of_clips else IMAGE_FPS),
            clip_frames,
            options.stride or ((clip_frames + 1) // 2 if self._of_clips else clip_frames),
            width,
            files.weights_sha256(),
            resize=steps.resize,
            crop=steps.crop,
            scale=steps.scale,
            mean=steps.mean,
            std=steps.std,
            output=output,
        )

    def prepare(self, frame: Uint8) -> Float32:
        return self._prepare(frame)

    def run(self, clips: Float32) -> Float32:
        def rows() -> Float32:
            found = self._outputs.take(self._output, self._batch(clips)).float().cpu().numpy()
            return np.asarray(found, np.float32)

        made = self._infer(rows)
        if self._of_clips:
            return made
        means: Float32 = made.reshape(*clips.shape[:2], -1).mean(axis=1, dtype=np.float32)
        return means

    def _batch(self, clips: Float32) -> Any:
        """The network's input: clips, or for an image network all of their frames."""
        import torch

        shaped = clips if self._of_clips else clips.reshape(-1, *clips.shape[2:])
        return torch.from_numpy(np.ascontiguousarray(shaped)).to(self._device, self._dtype)

    def _infer(self, work: Any) -> Any:
        from mmn_fast.process.torch_threads import strictly

        return strictly(work, self._threads)


def _device(wanted: str) -> str:
    import torch

    from mmn_fast.process.torch_threads import cuda_lost_by_fork

    kind, _, number = wanted.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not number.isdigit()):
        raise InputError(f"device: expected auto, cpu, cuda or cuda:N, got {wanted!r}")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() and cuda_lost_by_fork() is None else "cpu"
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            raise InputError(f"device: this PyTorch {torch.__version__} finds {count} CUDA devices, got {wanted!r}")
    return wanted


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers' bars and reports off stderr; what matters is checked and said here."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()


def _model(files: Files) -> tuple[Any, frozenset[str]]:
    """The network, and the names of its weights that the files lack."""
    from transformers import AutoModel

    try:
        model, info = AutoModel.from_pretrained(
            files.folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # transformers raises many kinds of errors; the first line says what happened
        raise InputError(f"extractor: {files.name}: transformers does not load it ({first_line(error)})") from None
    return model, frozenset(info["missing_keys"])


def _clip_length(config: Any) -> int | None:
    """Frames of a video network's clips; None for an image network."""
    for part in (config, getattr(config, "vision_config", None)):
        for name in ("num_frames", "frames_per_clip"):
            value = getattr(part, name, None)
            if isinstance(value, int):
                return value
    return None


def _processor(files: Files) -> tuple[Any, FrameSteps]:
    """The function that prepares a frame, float32 [3, h, w], and what it does."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(
            files.folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except Exception as error:
        values = files.video_processor()
        if values is None:
            raise InputError(
                f"extractor: {files.name}: transformers does not load its image processor ({first_line(error)})"
            ) from None
        steps = _steps(values)
        return steps, steps

    def prepare(frame: Uint8) -> Float32:
        made = np.asarray(processor([frame], return_tensors="np", input_data_format="channels_last")["pixel_values"])
        values = made.reshape(-1, *made.shape[-3:])
        if len(values) != 1 or made.ndim < 4:
            raise InputError(
                f"extractor: {files.name}: its processor makes {list(made.shape)} of one frame; expected one image"
            )
        one: Float32 = np.ascontiguousarray(values[0], np.float32)
        return one

    return prepare, _steps(processor.to_dict())


def _steps(values: dict[str, Any]) -> FrameSteps:
    """What a processor's values say that it does."""
    size, crop = values.get("size"), values.get("crop_size")
    resize = cropped = None
    if values.get("do_resize") and size is not None:
        resize = {"shortest_edge": size} if isinstance(size, int) else {key: one for key, one in size.items() if one}
        number = values.get("resample")
        resize["filter"] = next((name for name, known in FILTER_NUMBERS.items() if known == number), "bilinear")
    if values.get("do_center_crop") and crop is not None:
        sides = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        cropped = {name: sides[name] for name in ("height", "width")}
    share = values.get("crop_pct")
    if share and resize and "shortest_edge" in resize:  # ConvNeXT's processor, which ResNet and others use
        side = resize.pop("shortest_edge")
        cropped = {"height": side, "width": side}
        resize |= {"shortest_edge": int(side / share)} if side < 384 else cropped
    rescales, normalises = values.get("do_rescale", True), values.get("do_normalize")
    mean, std = (_colours(values.get(key)) if normalises else None for key in ("image_mean", "image_std"))
    if rescales and values.get("offset") and mean is None:  # ViViT's processor subtracts 1
        mean = (1.0, 1.0, 1.0)
    scale = float(values.get("rescale_factor") or 1 / 255) if rescales else None
    return FrameSteps(resize, cropped, scale, mean, std)


def _colours(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    return (float(value),) * 3 if isinstance(value, (int, float)) else tuple(float(one) for one in value)
