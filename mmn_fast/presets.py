"""Presets: everything that differs between the datasets MMN was published on, as values.

This is the only file that spells a dataset's name. Numbers are those of the official configuration
files (MMN: `configs/pool_*.yaml`; HC-STVG: MMN-STVG's `configs/pool_stvg_16x16_k5l8.yaml`) and of the
official evaluation code. Adding a dataset is one more `Preset(...)` in `PRESETS`.
"""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmn_fast.files import check_name
from mmn_fast.types import InputError


@dataclass(frozen=True)
class LossParams:
    """Parameters of the mutual matching loss (paper, section 3.3) and of the iou loss.

    Attributes:
        tau_video: temperature of the video-to-sentence term.
        tau_sent: temperature of the sentence-to-video term.
        margin: margin taken off the positive pair's cosine.
        negative_video_iou: cells of the same video below this IoU are negatives.
        sent_removal_iou: sentences of the same video at or above this IoU are no negatives.
        num_positive: positive proposals per sentence, the best by IoU.
        min_iou: IoU that the iou loss scales to 0.
        max_iou: IoU that the iou loss scales to 1.
    """

    tau_video: float = 0.1
    tau_sent: float = 0.1
    margin: float = 0.4
    negative_video_iou: float = 0.5
    sent_removal_iou: float = 0.5
    num_positive: int = 1
    min_iou: float = 0.5
    max_iou: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """The official training schedule of a preset.

    Attributes:
        learning_rate: AdamW rate of everything but the text encoder, which takes a tenth of it.
        batch_size: videos per step, over all processes.
        epochs: number of epochs.
        milestones: epochs after which the rate is divided by ten.
        freeze_text_epochs: epochs in which DistilBERT is not updated.
        all_losses_epochs: epochs with full contrastive terms; later ones weigh them by another 0.01.
        contrastive_weight: weight of the two contrastive terms beside the iou loss.
        test_batch_size: videos per evaluation batch.
    """

    learning_rate: float = 1e-4
    batch_size: int = 48
    epochs: int = 18
    milestones: tuple[int, ...] = (8, 13)
    freeze_text_epochs: int = 4
    all_losses_epochs: int = 7
    contrastive_weight: float = 0.05
    test_batch_size: int = 48


_COUNTS = (
    "num_pre_clips",
    "num_clips",
    "hidden_size",
    "clip_pool_kernel",
    "conv_hidden_size",
    "conv_kernel",
    "conv_layers",
    "joint_size",
)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class Preset:
    """Sizes, conventions, evaluation and recipe of one published model.

    Attributes:
        name: the key in `PRESETS`, or the stem of the configuration file it was read from.
        num_pre_clips: T, averaged features a video is cut into.
        num_clips: N, side of the 2D map; divides T.
        feature_streams: widths of the feature streams, concatenated in this order; each is normalised on its own.
        hidden_size: C of clip_pool.
        clip_pool_kernel: average-pool kernel over pre-clips (its stride is T / N).
        pooling: "pool" builds the 2D map by max pools, "conv" by learned 1D convolutions.
        pooling_counts: diagonals kept at stride 1, 2, 4, ... of the 2D map.
        conv_hidden_size: C of the proposal convolution.
        conv_kernel: k, its kernel.
        conv_layers: L, its layers.
        joint_size: J, width of the joint space.
        clamp_pre_clips: pre-clip bounds are clamped to the last row before the mean (MMN), not only for an empty span
            (MMN-STVG).
        score_fusion: "power": (0.5 c + 0.5)^p u; "product": c u.
        score_power: p of the power fusion.
        nms_iou: moments above this IoU with a better one are suppressed.
        recall_at: the n of R@n.
        recall_ious: the m of R@n,IoU@m.
        timestamp_unit: unit of the annotation file's timestamps.
        feature_key: dataset below the video's group in the published HDF5 file, None if the video is the dataset.
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
        for name in _COUNTS:
            self._require(name, _is_count(getattr(self, name)), "an integer >= 1")
        for name in ("feature_streams", "pooling_counts", "recall_at"):
            self._require(name, all(map(_is_count, getattr(self, name))), "integers >= 1")
        self._require("feature_streams", self.feature_streams, "at least one width")
        self._require("pooling", self.pooling in ("pool", "conv"), "'pool' or 'conv'")
        self._require("score_fusion", self.score_fusion in ("power", "product"), "'power' or 'product'")
        self._require("timestamp_unit", self.timestamp_unit in ("seconds", "frames"), "'seconds' or 'frames'")
        self._require("num_clips", self.num_pre_clips % self.num_clips == 0, f"a divisor of {self.num_pre_clips}")
        pooled = (self.num_pre_clips - self.clip_pool_kernel) // self.clip_pool_stride + 1
        self._require("clip_pool_kernel", pooled == self.num_clips, f"a kernel that leaves {self.num_clips} clips")
        # An unpadded layer shrinks the map by k - 1, the first one's padding must make up for all of them.
        even = (self.conv_kernel - 1) * self.conv_layers % 2 == 0
        self._require("conv_kernel", even, "(k - 1) L even, so that the map keeps its size")
        longest = sum(count * 2**level for level, count in enumerate(self.pooling_counts))
        self._require("pooling_counts", longest < self.num_clips, f"diagonals within {self.num_clips} clips")

    def _require(self, name: str, holds: object, expected: str) -> None:
        if not holds:
            raise InputError(f"preset {self.name!r}: {name}: expected {expected}, got {getattr(self, name)!r}")

    @property
    def input_size(self) -> int:
        """D, the width of a feature row: all streams side by side."""
        return sum(self.feature_streams)

    @property
    def clip_pool_stride(self) -> int:
        """Stride of clip_pool's average pool, T / N."""
        return self.num_pre_clips // self.num_clips

    def to_dict(self) -> dict[str, Any]:
        """All values, nested, as plain JSON types; `Preset.from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preset:
        """The preset that `to_dict` wrote.

        Raises:
            InputError: a value is missing, unknown or of the wrong kind (named).
        """
        return _build(cls, values, f"preset {values.get('name', '')!r}")


def _build(kind: type, values: dict[str, Any], where: str) -> Any:
    known = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(known))
    required = [n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if unknown or missing:
        raise InputError(f"{where}: missing {missing}, unknown {unknown}")
    nested: dict[str, type] = {"loss": LossParams, "recipe": Recipe}
    built = {}
    for name, value in values.items():
        if name in nested:
            value = _build(nested[name], value, f"{where}, {name}")
        built[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**built)
    except TypeError as error:
        raise InputError(f"{where}: {error}") from None


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
            ),
        ),
        # The procedural world of mmn_fast.demo, and the small model of it that comes with the package.
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
    )
}

# DATASETS.NAME of the official configuration files -> the preset whose conventions (evaluation, file layout) it has.
_OFFICIAL_NAMES = {
    "charades": "charades-sta",
    "activitynet": "activitynet-captions",
    "tacos": "tacos",
    "stvg": "hc-stvg",
}

# Values that an official file may leave out (MMN and MMN-STVG `config/defaults.py`, which differ in three).
_OFFICIAL_DEFAULTS: dict[str, Any] = {
    "INPUT.NUM_PRE_CLIPS": 256,
    "NUM_CLIPS": 128,
    "JOINT_SPACE_SIZE": 256,
    "FEATPOOL.INPUT_SIZE": 4096,
    "FEATPOOL.HIDDEN_SIZE": 512,
    "FEATPOOL.KERNEL_SIZE": 2,
    "FEAT2D.NAME": "pool",
    "FEAT2D.POOLING_COUNTS": [15, 8, 8, 8],
    "TEXT_ENCODER.NAME": "BERT",
    "PREDICTOR.HIDDEN_SIZE": 512,
    "PREDICTOR.KERNEL_SIZE": 5,
    "PREDICTOR.NUM_STACK_LAYERS": 8,
    "LOSS.MIN_IOU": 0.3,
    "LOSS.MAX_IOU": 0.7,
    "LOSS.NUM_POSTIVE_VIDEO_PROPOSAL": 1,
    "LOSS.NEGATIVE_VIDEO_IOU": 0.5,
    "LOSS.SENT_REMOVAL_IOU": 0.5,
    "LOSS.CONTRASTIVE_WEIGHT": 0.05,
    "LOSS.TAU_VIDEO": 0.2,
    "LOSS.TAU_SENT": 0.2,
    "LOSS.MARGIN": 0.2,
    "SOLVER.MAX_EPOCH": 12,
    "SOLVER.LR": 0.01,
    "SOLVER.BATCH_SIZE": 32,
    "SOLVER.MILESTONES": (8, 11),
    "SOLVER.FREEZE_BERT": 4,
    "SOLVER.ONLY_IOU": 7,
    "TEST.BATCH_SIZE": 64,
    "TEST.NMS_THRESH": 0.5,
    "TEST.CONTRASTIVE_SCORE_POW": 0.5,
}
_STVG_DEFAULTS = {
    "JOINT_SPACE_SIZE": 128,
    "FEATPOOL.INPUT_SIZE": [1024],
    "LOSS.NUM_POSTIVE_VIDEO_PROPOSAL": 5,
    "LOSS.CONTRASTIVE_WEIGHT": 0.1,
}


def get_preset(preset: str | Path | Preset) -> Preset:
    """The preset of that name, read from that official YAML file, or the preset itself.

    Args:
        preset: a key of `PRESETS`, the path of an official MMN or MMN-STVG YAML file, or a `Preset`.

    Raises:
        InputError: no such name or file, or the file's values do not make a model.
    """
    if isinstance(preset, Preset):
        return preset
    check_name(preset, "preset")
    if str(preset) in PRESETS:
        return PRESETS[str(preset)]
    path = Path(preset)
    if path.suffix.lower() in (".yaml", ".yml"):
        return read_official_yaml(path)
    raise InputError(f"preset: expected one of {', '.join(PRESETS)}, a .yaml file or a Preset, got {str(preset)!r}")


def read_official_yaml(path: str | Path) -> Preset:
    """The preset that an official MMN or MMN-STVG configuration file describes.

    Args:
        path: the YAML file; values it leaves out take the official defaults.

    Raises:
        InputError: the file is missing, is no official configuration, or its values do not make a model.
    """
    import yaml

    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"preset: {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"preset: {path} is not a YAML file ({str(error).splitlines()[0]})") from None
    model = tree.get("MODEL") if isinstance(tree, dict) else None
    family = next((name for name in ("MMN", "TAN") if isinstance(model, dict) and name in model), None)
    if not isinstance(model, dict) or family is None:
        raise InputError(f"preset: {path}: expected an official configuration with MODEL.MMN or MODEL.TAN")
    defaults = _OFFICIAL_DEFAULTS | (_STVG_DEFAULTS if family == "TAN" else {})

    def value(key: str) -> Any:
        top_level = key.split(".")[0] in ("INPUT", "SOLVER", "TEST", "DATASETS")
        node: Any = tree if top_level else model[family]
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        node = defaults.get(key) if node is None else node
        # yacs writes tuples as "(7, 15)", which YAML reads as text.
        if isinstance(node, str) and node.startswith("("):
            try:
                node = ast.literal_eval(node)
            except (ValueError, SyntaxError):
                raise InputError(f"preset: {path}: {key}: expected a tuple, got {node!r}") from None
        return tuple(node) if isinstance(node, list) else node

    dataset = value("DATASETS.NAME")
    if dataset not in _OFFICIAL_NAMES:
        raise InputError(f"preset: {path}: DATASETS.NAME: expected one of {list(_OFFICIAL_NAMES)}, got {dataset!r}")
    if value("TEXT_ENCODER.NAME") != "BERT":
        raise InputError(f"preset: {path}: TEXT_ENCODER.NAME: expected 'BERT', got {value('TEXT_ENCODER.NAME')!r}")
    streams = value("FEATPOOL.INPUT_SIZE")
    try:
        return dataclasses.replace(
            PRESETS[_OFFICIAL_NAMES[dataset]],
            name=path.stem,
            num_pre_clips=value("INPUT.NUM_PRE_CLIPS"),
            num_clips=value("NUM_CLIPS"),
            feature_streams=streams if isinstance(streams, tuple) else (streams,),
            hidden_size=value("FEATPOOL.HIDDEN_SIZE"),
            clip_pool_kernel=value("FEATPOOL.KERNEL_SIZE"),
            pooling=value("FEAT2D.NAME"),
            pooling_counts=value("FEAT2D.POOLING_COUNTS"),
            conv_hidden_size=value("PREDICTOR.HIDDEN_SIZE"),
            conv_kernel=value("PREDICTOR.KERNEL_SIZE"),
            conv_layers=value("PREDICTOR.NUM_STACK_LAYERS"),
            joint_size=value("JOINT_SPACE_SIZE"),
            clamp_pre_clips=family == "MMN",
            score_power=value("TEST.CONTRASTIVE_SCORE_POW"),
            nms_iou=value("TEST.NMS_THRESH"),
            loss=LossParams(
                tau_video=value("LOSS.TAU_VIDEO"),
                tau_sent=value("LOSS.TAU_SENT"),
                margin=value("LOSS.MARGIN"),
                negative_video_iou=value("LOSS.NEGATIVE_VIDEO_IOU"),
                sent_removal_iou=value("LOSS.SENT_REMOVAL_IOU"),
                num_positive=value("LOSS.NUM_POSTIVE_VIDEO_PROPOSAL"),
                min_iou=value("LOSS.MIN_IOU"),
                max_iou=value("LOSS.MAX_IOU"),
            ),
            recipe=Recipe(
                learning_rate=value("SOLVER.LR"),
                batch_size=value("SOLVER.BATCH_SIZE"),
                epochs=value("SOLVER.MAX_EPOCH"),
                milestones=value("SOLVER.MILESTONES"),
                freeze_text_epochs=value("SOLVER.FREEZE_BERT"),
                all_losses_epochs=value("SOLVER.ONLY_IOU"),
                contrastive_weight=value("LOSS.CONTRASTIVE_WEIGHT"),
                test_batch_size=value("TEST.BATCH_SIZE"),
            ),
        )
    except TypeError as error:
        raise InputError(f"preset: {path}: {error}") from None
