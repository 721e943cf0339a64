"""The extractor `onnx:<file.onnx>`: any image or clip network on ONNX Runtime, described by a JSON file beside it."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.arrays import Float32, Uint8
from mmn_fast.checks import Integer, OneOf, Optional, Rule, Text, build, check_fields
from mmn_fast.errors import InputError
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.extractors.clips import DEFAULT_BATCH, ClipExtractor
from mmn_fast.features.extractors.options import ExtractorOptions
from mmn_fast.features.extractors.steps import FrameSteps, need_pillow
from mmn_fast.features.messages import close_to, first_line, listed
from mmn_fast.process.cores import limited_cores
from mmn_fast.process.forks import fork_waits
from mmn_fast.process.onnxruntime_module import onnxruntime_module
from mmn_fast.storage.checksums import file_sha256
from mmn_fast.storage.documents import read_json
from mmn_fast.weights.hub import check_arrived

_LOG = logging.getLogger(__name__)
# Layout -> order of the axes of a clip batch [N, T, C, H, W] in the network's input; without T, frames are the batch.
_LAYOUTS = {
    "NCHW": (0, 1, 2, 3),
    "NHWC": (0, 2, 3, 1),
    "NCTHW": (0, 2, 1, 3, 4),
    "NTCHW": (0, 1, 2, 3, 4),
    "NTHWC": (0, 1, 3, 4, 2),
}
_POOLS = ("mean-channels-first", "mean-channels-last", "first-token")
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


@dataclass(frozen=True)
class OnnxDescription:
    """The JSON file beside a network: what the ONNX file itself does not say. docs/features.md describes every key.

    Attributes:
        layout: order of the input's axes, "NCHW", "NHWC", "NCTHW", "NTCHW" or "NTHWC".
        colour: "rgb" or "bgr".
        resize: as `FeatureContract.resize`.
        crop: as `FeatureContract.crop`.
        scale: as `FeatureContract.scale`.
        mean: as `FeatureContract.mean`.
        std: as `FeatureContract.std`.
        fps: sampled frames per second.
        clip_frames: sampled frames per row; a network of single frames gives the mean over them.
        stride: sampled frames from one row to the next; None for `clip_frames`.
        input: name of the input; None if there is one.
        output: name of a tensor of the network, an output or one inside; None if there is one output.
        pool: how an output of more than two axes becomes a row; None if it is [N, D].
    """

    layout: str
    colour: str
    resize: dict[str, Any] | None
    crop: dict[str, int] | None
    scale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    fps: float
    clip_frames: int
    stride: int | None = None
    input: str | None = None
    output: str | None = None
    pool: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, _RULES, "description")
        shared = {name: getattr(self, name) for name in (f.name for f in fields(FrameSteps))}
        # The contract's own rules check the shared fields.
        checked = FeatureContract("onnx", self.fps, self.clip_frames, self.stride or self.clip_frames, 1, **shared)
        for name in (*shared, "fps", "clip_frames"):
            object.__setattr__(self, name, getattr(checked, name))

    def steps(self) -> FrameSteps:
        """What is done to every frame."""
        return FrameSteps(self.resize, self.crop, self.scale, self.mean, self.std, self.colour)


_RULES: dict[str, Rule] = {
    "layout": OneOf(tuple(_LAYOUTS)),
    "stride": Optional(Integer(1, 2**20)),
    "input": Optional(Text(most=1000)),
    "output": Optional(Text(most=1000)),
    "pool": Optional(OneOf(_POOLS)),
}


def read_description(path: Path) -> OnnxDescription:
    """Read the JSON file beside a network.

    Raises:
        InputError: it is missing, or not as `OnnxDescription` says; the message names the file and the key.
    """
    where = f"extractor: {path}"
    try:
        return build(OnnxDescription, read_json(path, where, 2**16), where)
    except InputError as error:
        for theirs in ("description: ", "contract: "):
            if str(error).startswith(theirs):
                raise InputError(f"{where}: {str(error).removeprefix(theirs)}") from None
        raise


class OnnxExtractor(ClipExtractor):
    """Runs a network on ONNX Runtime.

    Args:
        place: the ONNX file; the description has its name with the suffix .json.
        options: all of them; `precision` is the network's own.

    Raises:
        InputError: a file is missing, damaged or does not fit the other, or an option cannot be used.
    """

    def __init__(self, place: str, options: ExtractorOptions) -> None:
        path = Path(place)
        check_arrived(path, f"extractor: {path}")
        options.refuse("onnx", precision="has the precision of its file")
        self._path, self._said = path, read_description(path.with_suffix(".json"))
        self._steps = self._said.steps()
        if self._steps.resize is not None:
            need_pillow()
        self.threads = options.threads or 0
        wanted, self._pool = _split(options.output) if options.output else (self._said.output, self._said.pool)
        content, sha256 = _graph_with_output(path, wanted)
        self._session = _open(path if content is None else content, path, options)
        self._input = self._pick(self._session.get_inputs(), self._said.input, "input")
        self._output = self._pick(self._session.get_outputs(), wanted, "output").name
        clip_frames = options.clip_frames or self._said.clip_frames
        if self._of_clips and clip_frames != self._said.clip_frames:
            raise InputError(f"clip_frames: {path} takes {self._said.clip_frames}, got {clip_frames}")
        stride = options.stride or (self._said.stride if clip_frames == self._said.clip_frames else None) or clip_frames
        self._fixed = self._fixed_batch(clip_frames)
        self.batch_size = options.batch_size or DEFAULT_BATCH
        width = self._probe(clip_frames)
        self.contract = FeatureContract(
            f"onnx:{path.absolute()}",
            options.fps or self._said.fps,
            clip_frames,
            stride,
            width,
            sha256,
            **{f.name: getattr(self._steps, f.name) for f in fields(self._steps)},
            output=self._output if self._pool is None else f"{self._output}:{self._pool}",
        )

    @property
    def _of_clips(self) -> bool:
        return "T" in self._said.layout

    def _pick(self, found: list[Any], name: str | None, what: str) -> Any:
        names = [one.name for one in found]
        if name is None and len(names) != 1:
            raise InputError(
                f"extractor: {self._path}: expected the name of the {what} in its JSON, got none; it has"
                f" {listed(names, what)}"
            )
        if name is not None and name not in names:
            raise InputError(
                f"extractor: {self._path}: no {what} {name!r}{close_to(name, names)}; it has {listed(names, what)}"
            )
        return found[names.index(names[0] if name is None else name)]

    def _fixed_batch(self, clip_frames: int) -> int | None:
        """Check the input's sides against the description; return the batch that the graph demands, if it does."""
        shape, layout = list(self._input.shape), self._said.layout
        size = self._steps.size() or (None, None)
        sides = {"C": 3, "T": clip_frames, "H": size[0], "W": size[1]}
        expected = [sides.get(axis, "N") for axis in layout]
        fits = len(shape) == len(layout) and all(
            not isinstance(side, int) or sides.get(axis) in (None, side)
            for axis, side in zip(layout, shape, strict=True)
        )
        if not fits:
            raise InputError(
                f"extractor: {self._path}: its input {self._input.name!r} is {shape}, and the layout {layout} of its"
                f" JSON, with clip_frames, resize and crop, makes {expected}"
            )
        if self._input.type not in _FLOATS:
            raise InputError(
                f"extractor: {self._path}: expected an input of {', '.join(_FLOATS)}, got {self._input.type}"
            )
        if self._input.type == "tensor(uint8)" and any((self._steps.scale, self._steps.mean, self._steps.std)):
            raise InputError(f"extractor: {self._path}: its input is uint8, so scale, mean and std must be null")
        return shape[0] if isinstance(shape[0], int) else None

    def _probe(self, clip_frames: int) -> int:
        """Run the network on black frames; return D."""
        height, width = self._steps.size() or (256, 256)
        clip = np.zeros((1, clip_frames, 3, height, width), np.float32)
        return self.run(clip).shape[1]

    def prepare(self, frame: Uint8) -> Float32:
        return self._steps(frame)

    def run(self, clips: Float32) -> Float32:
        if self._of_clips:
            return self._rows(clips.transpose(_LAYOUTS[self._said.layout]))
        frames = clips.reshape(-1, *clips.shape[2:]).transpose(_LAYOUTS[self._said.layout])
        rows = self._rows(frames)
        means: Float32 = rows.reshape(*clips.shape[:2], -1).mean(axis=1, dtype=np.float32)
        return means

    def _rows(self, values: Float32) -> Float32:
        """Rows of a batch in the network's layout; a graph of a fixed batch runs in steps, the last one filled up."""
        values = np.ascontiguousarray(values, _FLOATS[self._input.type])
        step = self._fixed or len(values)
        rows = []
        for first in range(0, len(values), step):
            some = values[first : first + step]
            missing = step - len(some)
            if missing:
                some = np.concatenate([some, np.repeat(some[-1:], missing, axis=0)])
            rows.append(self._pooled(self._infer(some))[: step - missing])
        return np.concatenate(rows)

    def _infer(self, values: Any) -> Any:
        try:
            with fork_waits:
                return self._session.run([self._output], {self._input.name: values})[0]
        except Exception as error:  # ONNX Runtime has its own class for each kind of failure
            raise InputError(
                f"extractor: {self._path}: fails for an input of {list(values.shape)} ({first_line(error)})"
            ) from None

    def _pooled(self, values: Any) -> Float32:
        values = np.asarray(values, np.float32)
        pool = self._pool
        if pool is not None and values.ndim > 2:
            if pool == "first-token":
                values = values[:, 0]
            else:
                first = 2 if pool == "mean-channels-first" else 1
                values = values.mean(axis=tuple(range(first, values.ndim - 2 + first)), dtype=np.float32)
        if values.ndim < 2 or values[0].size != max(values.shape[1:]):
            raise InputError(
                f"extractor: {self._path}: its output {self._output!r} is {list(values.shape)}; pool in the JSON says"
                f" how it becomes [N, D]: {', '.join(_POOLS)}"
            )
        return values.reshape(len(values), -1)


def _split(output: str) -> tuple[str, str | None]:
    """A tensor's name and its pool, of "name" or "name:pool"; names may have colons."""
    name, _, pool = output.rpartition(":")
    return (name, pool) if pool in _POOLS else (output, None)


def _graph_with_output(path: Path, wanted: str | None) -> tuple[bytes | None, str]:
    """The file's content with a tensor inside the graph as an output (None if nothing is to change), and its SHA-256.

    The SHA-256 covers files of weights that the ONNX file names.
    """
    try:
        import onnx
        from onnx.external_data_helper import ExternalDataInfo, uses_external_data
    except ImportError:
        raise InputError("extractor: onnx files need the onnx package (pip install mmn_fast[onnx])") from None
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # on damaged bytes a decoder may raise anything
        raise InputError(f"extractor: {path}: truncated, damaged or no ONNX file ({first_line(error)})") from None
    others = sorted({ExternalDataInfo(one).location for one in model.graph.initializer if uses_external_data(one)})
    digest = hashlib.sha256(file_sha256(path).encode())
    for name in others:
        if Path(name).name != name:
            raise InputError(f"extractor: {path}: keeps weights in {name!r}, which is not beside it")
        check_arrived(path.with_name(name), f"extractor: {path.with_name(name)}")
        digest.update(file_sha256(path.with_name(name)).encode())
    sha256 = digest.hexdigest() if others else file_sha256(path)
    if wanted is None or wanted in [one.name for one in model.graph.output]:
        return None, sha256
    inside = [name for node in model.graph.node for name in node.output if name]
    if wanted not in inside:
        outputs = [one.name for one in model.graph.output]
        raise InputError(
            f"extractor: {path}: no tensor {wanted!r}{close_to(wanted, [*outputs, *inside])}; it has"
            f" {listed(outputs, 'output')} and {listed(inside[::-1], 'tensor')} inside"
        )
    if others:
        raise InputError(
            f"extractor: {path}: {wanted!r} is inside the network, whose weights are in other files; export the network"
            " with this output"
        )
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(wanted))
    return model.SerializeToString(), sha256


def _open(model: Path | bytes, path: Path, options: ExtractorOptions) -> Any:
    try:
        onnxruntime = onnxruntime_module()
    except ImportError:
        raise InputError("extractor: onnx files need onnxruntime (pip install mmn_fast[onnx])") from None
    kind, _, number = options.device.partition(":")
    cuda = "CUDAExecutionProvider"
    if kind not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: expected auto, cpu, cuda or cuda:N, got {options.device!r}")
    has_cuda = cuda in onnxruntime.get_available_providers()
    if kind == "cuda" and not has_cuda:
        raise InputError(
            f"device: this onnxruntime {onnxruntime.__version__} has no CUDA provider (pip uninstall onnxruntime, then"
            f" pip install mmn_fast[onnx-gpu]), got {options.device!r}"
        )
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors alone
    threads = options.threads or limited_cores()
    if threads is not None:
        settings.intra_op_num_threads = threads
    on_cuda = (cuda, {"device_id": number or "0", "use_tf32": "0"})  # TF32 would round to 11 bits
    if has_cuda and kind != "cpu" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA and cuDNN from their wheels
    content = model if isinstance(model, bytes) else str(model)
    for provider in ([on_cuda] if has_cuda and kind != "cpu" else []) + ["CPUExecutionProvider"]:
        try:
            with fork_waits:
                session = onnxruntime.InferenceSession(content, settings, providers=[provider], enable_fallback=0)
        except Exception as error:  # ONNX Runtime has its own class for each kind of failure
            reason = first_line(error)
        else:
            if provider is not on_cuda or cuda in session.get_providers():
                return session
            reason = "its CUDA provider does not start"
        if provider is on_cuda and kind == "auto":
            _LOG.warning("%s runs on the CPU: %s", path, reason)
        else:
            break
    raise InputError(f"extractor: {path}: ONNX Runtime does not load it on {options.device} ({reason})") from None
