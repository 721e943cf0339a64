"""The extractors by name: one row and one file each. An extractor's module is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from mmn_fast.checks import nearest, shown
from mmn_fast.errors import InputError
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.extractors.base import Extractor
from mmn_fast.features.extractors.options import ExtractorOptions

# Name -> what follows its colon (None: nothing), and the function that makes the extractor of that place and options.
_EXTRACTORS: dict[str, tuple[str | None, str, str]] = {
    "pixels": (None, "mmn_fast.features.extractors.pixels", "PixelExtractor"),
    "hf": ("<model id or directory>", "mmn_fast.features.extractors.hf", "HfExtractor"),
    "onnx": ("<file.onnx>", "mmn_fast.features.extractors.onnx_graph", "OnnxExtractor"),
}
SPECS = tuple(name if place is None else f"{name}:{place}" for name, (place, _, _) in _EXTRACTORS.items())
"""How an extractor may be named."""


def make_extractor(
    spec: str,
    *,
    fps: float | None = None,
    clip_frames: int | None = None,
    stride: int | None = None,
    output: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
) -> Extractor:
    """Make an extractor.

    Args:
        spec: one of `SPECS`, such as "pixels".
        fps: sampled frames per second; default the extractor's.
        clip_frames: sampled frames per row; default the extractor's.
        stride: sampled frames from one row's first frame to the next row's; default the extractor's.
        output: the network's output that becomes a row; default the extractor's.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto" (fp32), "fp32", "bf16" or "fp16".
        batch_size: clips that the network takes at once; default the extractor's.
        threads: CPU threads; default all that this process may use.

    Raises:
        InputError: the spec names no extractor, its weights cannot be loaded, a package is missing, or the extractor
            does not take an option's value.
    """
    options = ExtractorOptions(fps, clip_frames, stride, output, device, precision, batch_size, threads)
    name, place = split_spec(spec)
    _, module, maker = _EXTRACTORS[name]
    make: Callable[[str, ExtractorOptions], Extractor] = getattr(import_module(module), maker)
    return make(place, options)


def split_spec(spec: str) -> tuple[str, str]:
    """An extractor's name and place, of "name:place"; the place is "" for an extractor without one.

    Raises:
        InputError: the spec names no extractor, or lacks the place, or has one too many.
    """
    name, colon, place = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if name not in _EXTRACTORS:
        raise InputError(f"extractor: expected {' or '.join(SPECS)}, got {shown(spec)}; {nearest(name, _EXTRACTORS)}")
    expected = _EXTRACTORS[name][0]
    if (expected is None) != (colon == "") or (expected is not None and not place):
        wanted = name if expected is None else f"{name}:{expected}"
        raise InputError(f"extractor: expected {wanted}, got {shown(spec)}")
    return name, place


def extractor_for(contract: FeatureContract, spec: str | None = None, **options: Any) -> Extractor:
    """Make the extractor that a contract describes, and check that it makes such features.

    Args:
        contract: a model's or a file's.
        spec: the extractor, if its weights have moved since; default the contract's.
        **options: `device`, `precision`, `batch_size` and `threads` of `make_extractor`.

    Raises:
        InputError: as `make_extractor`; or the extractor's own contract differs (the first field that does is named).
    """
    kind = contract.kind if spec is None else str(spec).partition(":")[0]
    if kind != contract.kind:
        raise InputError(f"extractor: expected {contract.kind!r}, which the contract names, got {shown(spec)}")
    sampling = {name: getattr(contract, name) for name in ("fps", "clip_frames", "stride", "output")}
    made = make_extractor(contract.extractor if spec is None else spec, **sampling, **options)
    difference = contract.first_difference(made.contract)
    if difference is not None:
        raise InputError(f"extractor: {made.contract.extractor} makes other features than the contract: {difference}")
    return made
