"""Presets: everything that differs between MMN's published datasets, as values.

This is the only file that spells a dataset's name. Numbers come from the official configuration files (MMN:
`configs/pool_*.yaml`; HC-STVG: MMN-STVG's `configs/pool_stvg_16x16_k5l8.yaml`) and from the official evaluation code.
To add a dataset, add one `Preset(...)` to `PRESETS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmn_fast.checks import (
    Each,
    Integer,
    Number,
    OneOf,
    Optional,
    Rule,
    Text,
    build,
    check_bytes,
    check_fields,
    fail,
    flag,
    shown,
)
from mmn_fast.errors import InputError
from mmn_fast.preset_files.official import LOSS_KEYS, PRESET_KEYS, RECIPE_KEYS, read_official
from mmn_fast.preset_files.own import is_own, own_preset
from mmn_fast.recipes import LOSS_RULES, RECIPE_RULES
from mmn_fast.recipes import LossParams as LossParams  # re-exported: one import gives all types of a preset's values
from mmn_fast.recipes import Recipe as Recipe
from mmn_fast.storage.documents import read_yaml
from mmn_fast.storage.files import check_name
from mmn_fast.text_config import TextEncoderConfig as TextEncoderConfig

_SIZE = Integer()
_IOU = Number(0, 1)
_PRESET_RULES: dict[str, Rule] = {
    "name": Text(most=255),
    "num_pre_clips": _SIZE,
    "num_clips": _SIZE,
    "feature_streams": Each(_SIZE, most=64),
    "hidden_size": _SIZE,
    "clip_pool_kernel": _SIZE,
    "pooling": OneOf(("pool", "conv")),
    "pooling_counts": Each(_SIZE, least=0, most=31),
    "conv_hidden_size": _SIZE,
    "conv_kernel": _SIZE,
    "conv_layers": Integer(1, 1000),
    "joint_size": _SIZE,
    "clamp_pre_clips": flag,
    "score_fusion": OneOf(("power", "product")),
    "score_power": Number(0),
    "nms_iou": _IOU,
    "recall_at": Each(_SIZE),
    "recall_ious": Each(_IOU),
    "timestamp_unit": OneOf(("seconds", "frames")),
    "feature_key": Optional(Text()),
}
MAX_TAPS = 2**28
"""Most cell x tap products of all layers' dense maps; the published models have at most 5.1 million (TACoS)."""


@dataclass(frozen=True)
class Preset:
    """Sizes, conventions, evaluation and recipe of one published model.

    Attributes:
        name: the key in `PRESETS`, or the stem of the preset's configuration file.
        num_pre_clips: T, number of averaged features per video.
        num_clips: N, side of the 2D map.
        feature_streams: widths of the feature streams, concatenated in this order; each is normalised on its own.
        hidden_size: C of clip_pool.
        clip_pool_kernel: average-pool kernel over pre-clips; with stride T // N it gives N clips. T need not be a
            multiple of N; pre-clips outside all windows are left out.
        pooling: "pool" builds the 2D map by max pools, "conv" by learned 1D convolutions.
        pooling_counts: diagonals kept at stride 1, 2, 4, ... of the 2D map.
        conv_hidden_size: C of the proposal convolution.
        conv_kernel: k, its kernel.
        conv_layers: L, its layers.
        joint_size: J, width of the joint space.
        clamp_pre_clips: True clamps all pre-clip bounds to the last row before the mean (MMN); False clamps only those
            of an empty span (MMN-STVG).
        score_fusion: "power": (0.5 c + 0.5)^p u; "product": c u.
        score_power: p of the power fusion.
        nms_iou: a moment above this IoU with a better one is suppressed; between tubes, this vIoU.
        recall_at: the n of R@n.
        recall_ious: the m of R@n,IoU@m.
        timestamp_unit: unit of the annotation file's timestamps.
        feature_key: name of the dataset inside the video's group in the published HDF5 file; None if the video itself
            is a dataset.
        loss: loss parameters.
        recipe: training schedule.
    """

    name: str
    num_pre_clips: int
    num_clips: int
    feature_streams: tuple[int, ...]
    hidden_size: int
    clip_pool_kernel: int
    pooling_counts: tuple[int, ...]
    conv_hidden_size: int
    conv_kernel: int
    conv_layers: int
    joint_size: int
    pooling: Literal["pool", "conv"] = "pool"
    clamp_pre_clips: bool = True
    score_fusion: Literal["power", "product"] = "power"
    score_power: float = 0.5
    nms_iou: float = 0.5
    recall_at: tuple[int, ...] = (1, 5)
    recall_ious: tuple[float, ...] = (0.5, 0.7)
    timestamp_unit: Literal["seconds", "frames"] = "seconds"
    feature_key: str | None = None
    loss: LossParams = field(default_factory=LossParams)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        where = f"preset {shown(self.name)}"
        check_fields(self, _PRESET_RULES, where)
        for name, kind in (("loss", LossParams), ("recipe", Recipe)):
            if not isinstance(getattr(self, name), kind):
                raise fail(f"{where}: {name}", f"a {kind.__name__}", getattr(self, name))
        T, N = self.num_pre_clips, self.num_clips
        if N > T:
            raise fail(f"{where}: num_clips", f"at most num_pre_clips, {T}", N)
        # AvgPool1d with stride T // N gives (T - kernel) // stride + 1 clips.
        least, most = max(T - self.clip_pool_stride * N + 1, 1), T - self.clip_pool_stride * (N - 1)
        if not least <= self.clip_pool_kernel <= most:
            kernels = f"{least} to {most}" if least < most else str(least)
            expected = f"a kernel that leaves {N} of {T} pre-clips at stride {self.clip_pool_stride} ({kernels})"
            raise fail(f"{where}: clip_pool_kernel", expected, self.clip_pool_kernel)
        longest = sum(count * 2**level for level, count in enumerate(self.pooling_counts))
        if longest >= N:
            raise fail(f"{where}: pooling_counts", f"diagonals within {N} clips", self.pooling_counts)
        # An unpadded layer shrinks the map by k - 1; the padding of the first layer must make up for all layers.
        if (self.conv_kernel - 1) * self.conv_layers % 2:
            raise fail(f"{where}: conv_kernel", "(k - 1) L even, so that the map keeps its size", self.conv_kernel)
        self._check_work(where)

    def _check_work(self, where: str) -> None:
        """Refuse sizes that no machine can hold or that no plan supports, before any work is done with them."""
        side = self.num_clips + (self.conv_kernel - 1) * self.conv_layers
        taps = side**2 * self.conv_kernel**2 * self.conv_layers
        if taps > MAX_TAPS:
            raise InputError(
                f"{where}: num_clips {self.num_clips}, conv_kernel {self.conv_kernel} and conv_layers"
                f" {self.conv_layers} imply maps of {side} x {side} cells and {taps:.1e} products of cells and taps; at"
                f" most {MAX_TAPS:.1e}"
            )
        check_bytes(4 * self.num_weights, "weights of the video branch", where)
        check_bytes(4 * self.num_pre_clips * self.input_size, "features per video", where)
        check_bytes(4 * side**2 * max(self.hidden_size, self.conv_hidden_size), "map per video", where)
        proposals = self.num_clips * (1 + sum(self.pooling_counts))  # an upper bound of P
        check_bytes(8 * proposals * self.joint_size, "embeddings per video", where)

    @property
    def num_weights(self) -> int:
        """Parameters and statistics of the video branch."""
        C, W, kernels = self.hidden_size, self.conv_hidden_size, self.conv_kernel**2
        count = C * (self.input_size + 1) + W * (C + (self.conv_layers - 1) * W) * kernels + 5 * W * self.conv_layers
        if self.pooling == "conv":  # a level after the first begins with kernel 3, all other steps have kernel 2
            diagonals, threes = sum(self.pooling_counts), max(len(self.pooling_counts) - 1, 0)
            count += C * C * (2 * diagonals + threes) + C * diagonals
        return count + 2 * self.joint_size * (W + 1)

    @property
    def input_size(self) -> int:
        """D, the width of a feature row: all streams side by side."""
        return sum(self.feature_streams)

    @property
    def of_tubes(self) -> bool:
        """Whether the model grounds person tubes, as HC-STVG's solution does: it alone ranks by the plain product."""
        return self.score_fusion == "product"

    @property
    def clip_pool_stride(self) -> int:
        """Stride of clip_pool's average pool, T // N."""
        return self.num_pre_clips // self.num_clips

    def to_dict(self) -> dict[str, Any]:
        """All values as nested plain JSON types; `Preset.from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> Preset:
        """Read a preset that `to_dict` wrote.

        Raises:
            InputError: a value is missing, unknown (the message names the nearest known one), of the wrong kind, out of
                range, or implies more work or memory than `MAX_TAPS` or `checks.MAX_BYTES`.
        """
        if not isinstance(values, Mapping):
            raise fail("preset", "an object", values)
        where, nested = f"preset {shown(values.get('name', ''))}", {}
        for name, kind in (("loss", LossParams), ("recipe", Recipe)):
            if name in values:
                try:
                    nested[name] = build(kind, values[name], name)
                except InputError as error:
                    raise InputError(f"{where}: {error}") from None
        return build(cls, {**values, **nested}, where)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="charades-sta",
            num_pre_clips=32,
            num_clips=16,
            feature_streams=(4096,),
            hidden_size=512,
            clip_pool_kernel=2,
            pooling_counts=(15,),
            conv_hidden_size=512,
            conv_kernel=5,
            conv_layers=8,
            joint_size=256,
        ),
        Preset(
            name="activitynet-captions",
            num_pre_clips=256,
            num_clips=64,
            feature_streams=(500,),
            hidden_size=512,
            clip_pool_kernel=4,
            pooling_counts=(15, 8, 8),
            conv_hidden_size=512,
            conv_kernel=9,
            conv_layers=4,
            joint_size=256,
            recall_ious=(0.3, 0.5, 0.7),
            feature_key="c3d_features",
            loss=LossParams(margin=0.3),
            recipe=Recipe(learning_rate=8e-4, milestones=(7, 15), all_losses_epochs=6, contrastive_weight=0.1),
        ),
        Preset(
            name="tacos",
            num_pre_clips=256,
            num_clips=128,
            feature_streams=(4096,),
            hidden_size=512,
            clip_pool_kernel=2,
            pooling_counts=(15, 8, 8, 8),
            conv_hidden_size=512,
            conv_kernel=5,
            conv_layers=8,
            joint_size=256,
            score_power=0.3,
            nms_iou=0.4,
            recall_ious=(0.1, 0.3, 0.5),
            timestamp_unit="frames",
            loss=LossParams(margin=0.1, num_positive=3, min_iou=0.3, max_iou=0.7),
            recipe=Recipe(
                learning_rate=1.5e-3,
                batch_size=4,
                epochs=250,
                milestones=(130, 190),
                freeze_text_epochs=40,
                all_losses_epochs=100,
                contrastive_weight=0.1,
                test_batch_size=16,
            ),
        ),
        Preset(
            name="hc-stvg",
            num_pre_clips=32,
            num_clips=16,
            feature_streams=(1024, 1024),
            hidden_size=512,
            clip_pool_kernel=2,
            pooling_counts=(15,),
            conv_hidden_size=512,
            conv_kernel=7,
            conv_layers=4,
            joint_size=256,
            clamp_pre_clips=False,
            score_fusion="product",
            recall_at=(1,),
            recall_ious=(0.3, 0.5),
            timestamp_unit="frames",
            loss=LossParams(min_iou=0.3, max_iou=0.9),
            recipe=Recipe(
                batch_size=32,
                epochs=20,
                milestones=(11, 16),
                freeze_text_epochs=5,
                all_losses_epochs=10,
                contrastive_weight=0.1,
                test_batch_size=32,
                betas=(0.9, 0.999),
                weight_decay=1e-6,
                max_gradient_norm=10.0,
                processes=8,
                seed=25285,
            ),
        ),
        # The procedural world of mmn_fast.demo; the small trained model in the package uses this preset.
        Preset(
            name="shapes",
            num_pre_clips=32,
            num_clips=16,
            feature_streams=(357,),
            hidden_size=256,
            clip_pool_kernel=2,
            pooling_counts=(15,),
            conv_hidden_size=64,
            conv_kernel=3,
            conv_layers=4,
            joint_size=64,
            loss=LossParams(margin=0.3),
            recipe=Recipe(
                learning_rate=4e-3,
                batch_size=8,
                epochs=26,
                milestones=(20, 24),
                freeze_text_epochs=0,
                all_losses_epochs=26,
                contrastive_weight=0.05,
                test_batch_size=32,
            ),
        ),
        # Tubes in that world, ranked and cut into pre-clips as HC-STVG's.
        Preset(
            name="shapes-tubes",
            num_pre_clips=32,
            num_clips=16,
            feature_streams=(357,),
            hidden_size=64,
            clip_pool_kernel=2,
            pooling_counts=(15,),
            conv_hidden_size=32,
            conv_kernel=3,
            conv_layers=3,
            joint_size=64,
            clamp_pre_clips=False,
            score_fusion="product",
            recall_at=(1,),
            recall_ious=(0.3, 0.5),
            timestamp_unit="frames",
            loss=LossParams(margin=0.3, min_iou=0.3, max_iou=0.9),
            recipe=Recipe(
                learning_rate=4e-3,
                batch_size=8,
                epochs=8,
                milestones=(6, 7),
                freeze_text_epochs=0,
                all_losses_epochs=8,
                contrastive_weight=0.05,
                test_batch_size=32,
            ),
        ),
    )
}

# DATASETS.NAME in official configuration files -> the preset with the same conventions (evaluation, file layout).
_OFFICIAL_NAMES = {
    "charades": "charades-sta",
    "activitynet": "activitynet-captions",
    "tacos": "tacos",
    "stvg": "hc-stvg",
}


def get_preset(preset: str | Path | Preset) -> Preset:
    """Find a preset by name, read one from a YAML file, or pass a preset through.

    Args:
        preset: a key of `PRESETS`, the path of a YAML file (an official one of MMN or MMN-STVG, or one's own, which
            `mmn-fast preset new` writes and which has the key `mmn_fast_preset`), or a `Preset`.

    Raises:
        InputError: the name or file does not exist, or the file's values do not make a model.
    """
    if isinstance(preset, Preset):
        return preset
    check_name(preset, "preset")
    if str(preset) in PRESETS:
        return PRESETS[str(preset)]
    path = Path(preset)
    if path.suffix.lower() in (".yaml", ".yml"):
        tree = read_yaml(path, f"preset: {path}")
        return own_preset(tree, path, Preset.from_dict, PRESETS) if is_own(tree) else _official(tree, path)
    raise InputError(f"preset: expected one of {', '.join(PRESETS)}, a .yaml file or a Preset, got {str(preset)!r}")


def read_official_yaml(path: str | Path) -> Preset:
    """Read the preset that an official MMN or MMN-STVG configuration file describes.

    Args:
        path: the YAML file; missing values take the official defaults.

    Raises:
        InputError: the file is missing, is no official configuration, or its values do not make a model.
    """
    path = Path(path)
    return _official(read_yaml(path, f"preset: {path}"), path)


def _official(tree: object, path: Path) -> Preset:
    config = read_official(tree, path)
    where = f"preset: {path}"

    def checked(keys: dict[str, str], rules: dict[str, Rule]) -> dict[str, Any]:
        return {name: rules[name](config.values[key], f"{where}: {config.full_key(key)}") for name, key in keys.items()}

    dataset, encoder = (config.values[key] for key in ("DATASETS.NAME", "TEXT_ENCODER.NAME"))
    if not isinstance(dataset, str) or dataset not in _OFFICIAL_NAMES:
        raise fail(f"{where}: DATASETS.NAME", f"one of {list(_OFFICIAL_NAMES)}", dataset)
    if encoder != "BERT":
        raise fail(f"{where}: {config.full_key('TEXT_ENCODER.NAME')}", "'BERT'", encoder)
    if not isinstance(config.values["FEATPOOL.INPUT_SIZE"], tuple):
        config.values["FEATPOOL.INPUT_SIZE"] = (config.values["FEATPOOL.INPUT_SIZE"],)
    base = PRESETS[_OFFICIAL_NAMES[dataset]]
    try:
        return dataclasses.replace(
            base,
            **checked(PRESET_KEYS, _PRESET_RULES),
            name=path.stem,
            clamp_pre_clips=config.family == "MMN",
            loss=LossParams(**checked(LOSS_KEYS, LOSS_RULES)),
            recipe=dataclasses.replace(base.recipe, **checked(RECIPE_KEYS, RECIPE_RULES)),
        )
    except InputError as error:
        prefix = "" if str(error).startswith(where) else f"{where}: "
        raise InputError(f"{prefix}{error}") from None


PUBLISHED_FEATURES = {
    "charades-sta": "VGG16, published with 2D-TAN (vgg_rgb_features.hdf5)",
    "activitynet-captions": "C3D reduced to 500 values (sub_activitynet_v1-3.c3d.hdf5)",
    "tacos": "C3D fc6, published with 2D-TAN (tall_c3d_features.hdf5)",
    "hc-stvg": "CSN and optical flow, of each tube",
    "shapes": "mmn_fast.features.PixelFeatures",
    "shapes-tubes": "mmn_fast.features.PixelFeatures, of each tube",
}
"""Preset -> the features that its published models were trained on; other features of the same width are useless."""
