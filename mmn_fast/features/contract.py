"""The feature contract: how a file's features were made, and what a model's features must be made like.

A model gives meaningless moments for features of another extractor, and their width alone cannot show it. So
`mmn-fast features` writes the contract into the file of features, a model carries the contract of its training, and
the two are compared before any work.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mmn_fast.checks import (
    Each,
    Integer,
    Number,
    OneOf,
    Optional,
    Rule,
    Text,
    build,
    check_fields,
    check_keys,
    fail,
    shown,
)
from mmn_fast.errors import InputError
from mmn_fast.storage.documents import parse_json

MAX_JSON = 2**16
"""Most characters of a contract's JSON text."""

FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""Filters of a resize, by Pillow's names."""

_SIDES = ("height", "width", "shortest_edge", "longest_edge", "max_side")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _sha256(value: object, where: str) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise fail(where, "64 lower-case hexadecimal digits", value)
    return value


def _resize(value: object, where: str) -> dict[str, Any]:
    given = check_keys(value, (*_SIDES, "filter"), where, ())
    if not any(name in given for name in _SIDES):
        raise fail(where, f"an object with {', '.join(_SIDES[:-1])} or {_SIDES[-1]}", value)
    if ("height" in given) != ("width" in given):
        raise fail(where, "height and width together", value)
    sides = {name: Integer()(given[name], f"{where}: {name}") for name in _SIDES if name in given}
    if "filter" in given:
        return {**sides, "filter": OneOf(FILTERS)(given["filter"], f"{where}: filter")}
    return sides


def _crop(value: object, where: str) -> dict[str, int]:
    given = check_keys(value, ("height", "width"), where)
    return {name: Integer()(side, f"{where}: {name}") for name, side in given.items()}


@dataclass(frozen=True)
class FeatureContract:
    """How features are made from a video.

    Frames are sampled at a fixed rate: sampled frame k is the frame shown at (k + 0.5) / `fps` seconds. Row i describes
    the sampled frames i * `stride` to i * `stride` + `clip_frames` - 1.

    Attributes:
        extractor: kind and place: "pixels", "hf:<model id or directory>", "onnx:<file>", or a name of one's own.
        fps: sampled frames per second.
        clip_frames: sampled frames per row.
        stride: sampled frames from one row's first frame to the next row's.
        width: D, the length of a row.
        weights_sha256: SHA-256 of the weights, hexadecimal; None for an extractor without weights.
        resize: sides in pixels ("shortest_edge", or "height" and "width", or "longest_edge", or "max_side", which only
            shrinks), and the "filter"; None for no resize.
        crop: "height" and "width" in pixels of the central crop; None for no crop.
        scale: the factor of a pixel's value, 0 to 255, before `mean` is subtracted; None for 1.
        mean: value per colour that is subtracted; None for nothing.
        std: value per colour that divides the difference; None for nothing.
        colour: "rgb" or "bgr", the order of colours that the network takes.
        output: name of the network's output that becomes a row; None for an extractor with one output.

    Raises:
        InputError: a value is outside what its name says.
    """

    extractor: str
    fps: float
    clip_frames: int
    stride: int
    width: int
    weights_sha256: str | None = None
    resize: Mapping[str, Any] | None = None
    crop: Mapping[str, int] | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    colour: str = "rgb"
    output: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, _RULES, "contract")

    @property
    def kind(self) -> str:
        """The extractor's name without the place of its weights, such as "hf"."""
        return self.extractor.partition(":")[0]

    @property
    def row_s(self) -> float:
        """Seconds from one row to the next."""
        return self.stride / self.fps

    def first_difference(self, other: FeatureContract) -> str | None:
        """The first field in which another contract differs, as a part of a sentence; None if features may be mixed.

        The place of the weights is not compared if both contracts have the weights' SHA-256.

        Args:
            other: the contract that came; this one is the expected one.

        Returns:
            Such as "fps: expected 8.0, got 2.0".
        """
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name == "extractor" and self.weights_sha256 and other.weights_sha256:
                mine, theirs = self.kind, other.kind
            if mine != theirs:
                return f"{field.name}: expected {shown(mine)}, got {shown(theirs)}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, ready for `json.dumps`."""
        plain = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, values: object, where: str = "contract") -> FeatureContract:
        """Build a contract from plain values; fields with a default may be left out.

        Args:
            values: fields by name, as `to_dict` gives.
            where: begins messages.

        Raises:
            InputError: not an object, an unknown or missing field, or a value that cannot be used.
        """
        try:
            return build(cls, values, where)
        except InputError as error:
            if not str(error).startswith("contract: "):
                raise
            raise InputError(f"{where}{str(error).removeprefix('contract')}") from None

    def to_json(self) -> str:
        """The contract as one line of JSON, as files of features hold it."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str, where: str = "contract") -> FeatureContract:
        """Read the JSON of `to_json`.

        Raises:
            InputError: no JSON, longer than `MAX_JSON` characters, or no contract; `where` begins the message.
        """
        if len(text) > MAX_JSON:
            raise InputError(f"{where}: expected at most {MAX_JSON} characters, got {len(text)}")
        return cls.from_dict(parse_json(text, where), where)


_COLOURS = Each(Number(), 1, 4)
_RULES: dict[str, Rule] = {
    "extractor": Text(most=4096),
    "fps": Number(0, 1000, above=True),
    "clip_frames": Integer(1, 4096),
    "stride": Integer(1, 2**20),
    "width": Integer(),
    "weights_sha256": Optional(_sha256),
    "resize": Optional(_resize),
    "crop": Optional(_crop),
    "scale": Optional(Number(0, above=True)),
    "mean": Optional(_COLOURS),
    "std": Optional(Each(Number(0, above=True), 1, 4)),
    "colour": OneOf(("rgb", "bgr")),
    "output": Optional(Text(most=1000)),
}
