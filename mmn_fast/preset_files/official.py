"""Configuration files of the official programs (MMN and MMN-STVG): their keys, defaults and spellings.

A file becomes a flat dict of every key that a preset needs; `presets.py` says what the values mean.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmn_fast.checks import nearest, shown
from mmn_fast.errors import InputError
from mmn_fast.preset_files.own import MARK

# Defaults of values that a file may leave out (`config/defaults.py` of MMN and MMN-STVG, which differ in four values).
# Keys without a section, and FEATPOOL, FEAT2D, TEXT_ENCODER, PREDICTOR and LOSS, are below MODEL.MMN or MODEL.TAN.
_DEFAULTS: dict[str, Any] = {
    "DATASETS.NAME": "",
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
_STVG_DEFAULTS: dict[str, Any] = {
    "JOINT_SPACE_SIZE": 128,
    "FEATPOOL.INPUT_SIZE": [1024],
    "LOSS.NUM_POSTIVE_VIDEO_PROPOSAL": 5,
    "LOSS.CONTRASTIVE_WEIGHT": 0.1,
}
# Keys that say nothing about the model, or that the official programs never read.
_UNREAD = (
    *("MODEL.DEVICE", "MODEL.ARCHITECTURE", "DATASETS.TRAIN", "DATASETS.TEST", "DATALOADER.NUM_WORKERS"),
    *("LOSS.BCE_WEIGHT", "LOSS.PAIRWISE_SENT_WEIGHT", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.TEST_PERIOD"),
    *("SOLVER.RESUME", "SOLVER.RESUME_EPOCH", "SOLVER.SKIP_TEST", "OUTPUT_DIR", "PATHS_CATALOG"),
)
_STVG_UNREAD = (
    *("INPUT.PRE_QUERY_SIZE", "DATASETS.METRIC_TENSORBOARD", "TEXT_ENCODER.QUERY_HIDDEN_SIZE"),
    *("TEXT_ENCODER.LSTM.NUM_LAYERS", "TEXT_ENCODER.LSTM.BIDIRECTIONAL"),
)
# Field of a preset, its loss or its recipe -> the key that fills it; other fields are the dataset's conventions.
PRESET_KEYS = {
    "num_pre_clips": "INPUT.NUM_PRE_CLIPS",
    "num_clips": "NUM_CLIPS",
    "feature_streams": "FEATPOOL.INPUT_SIZE",
    "hidden_size": "FEATPOOL.HIDDEN_SIZE",
    "clip_pool_kernel": "FEATPOOL.KERNEL_SIZE",
    "pooling": "FEAT2D.NAME",
    "pooling_counts": "FEAT2D.POOLING_COUNTS",
    "conv_hidden_size": "PREDICTOR.HIDDEN_SIZE",
    "conv_kernel": "PREDICTOR.KERNEL_SIZE",
    "conv_layers": "PREDICTOR.NUM_STACK_LAYERS",
    "joint_size": "JOINT_SPACE_SIZE",
    "score_power": "TEST.CONTRASTIVE_SCORE_POW",
    "nms_iou": "TEST.NMS_THRESH",
}
LOSS_KEYS = {
    "tau_video": "LOSS.TAU_VIDEO",
    "tau_sent": "LOSS.TAU_SENT",
    "margin": "LOSS.MARGIN",
    "negative_video_iou": "LOSS.NEGATIVE_VIDEO_IOU",
    "sent_removal_iou": "LOSS.SENT_REMOVAL_IOU",
    "num_positive": "LOSS.NUM_POSTIVE_VIDEO_PROPOSAL",
    "min_iou": "LOSS.MIN_IOU",
    "max_iou": "LOSS.MAX_IOU",
}
RECIPE_KEYS = {
    "learning_rate": "SOLVER.LR",
    "batch_size": "SOLVER.BATCH_SIZE",
    "epochs": "SOLVER.MAX_EPOCH",
    "milestones": "SOLVER.MILESTONES",
    "freeze_text_epochs": "SOLVER.FREEZE_BERT",
    "all_losses_epochs": "SOLVER.ONLY_IOU",
    "contrastive_weight": "LOSS.CONTRASTIVE_WEIGHT",
    "test_batch_size": "TEST.BATCH_SIZE",
}
_TOP_LEVEL = ("MODEL", "INPUT", "DATASETS", "DATALOADER", "SOLVER", "TEST", "OUTPUT_DIR", "PATHS_CATALOG")
_FAMILIES = ("MMN", "TAN")
_NUMBER = re.compile(r"[-+]?[0-9.][0-9.eE+-]*")
_LONGEST_LITERAL = 1000


@dataclass(frozen=True)
class OfficialConfig:
    """Values of a configuration file, defaults filled in.

    Attributes:
        family: "MMN" or "TAN" (MMN-STVG).
        values: values by key, without MODEL.<family>; lists become tuples.
    """

    family: str
    values: dict[str, Any]

    def full_key(self, key: str) -> str:
        """A key as the file spells it, such as MODEL.MMN.NUM_CLIPS."""
        return _full_key(key, self.family)


def read_official(tree: object, path: str | Path) -> OfficialConfig:
    """Read the content of a configuration file of MMN or MMN-STVG.

    Args:
        tree: the content of the YAML file.
        path: the file, for messages.

    Raises:
        InputError: the file is no official configuration, or has a key that the official program does not know (the
            message names the nearest known key).
    """
    where = f"preset: {path}"
    model = tree.get("MODEL") if isinstance(tree, dict) else None
    found = [name for name in _FAMILIES if isinstance(model, dict) and name in model]
    if len(found) != 1:
        got = ", got both" if found else f"; a preset file of your own has the key {MARK}"
        raise InputError(f"{where}: expected an official configuration with MODEL.MMN or MODEL.TAN{got}")
    assert isinstance(tree, dict)
    family, stvg = found[0], found[0] == "TAN"
    values = _DEFAULTS | (_STVG_DEFAULTS if stvg else {})
    known = {_full_key(key, family): key for key in (*values, *_UNREAD, *(_STVG_UNREAD if stvg else ()))}
    for full, value in _leaves(tree, "", list(known), where).items():
        if known[full] in values and value is not None:
            values[known[full]] = _decode(value, f"{where}: {full}")
    return OfficialConfig(family, {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def _full_key(key: str, family: str) -> str:
    return key if key.split(".")[0] in _TOP_LEVEL else f"MODEL.{family}.{key}"


def _leaves(node: dict[Any, Any], prefix: str, known: list[str], where: str) -> dict[str, Any]:
    """Every full key below a section, with its value."""
    here = list(dict.fromkeys(key.removeprefix(prefix).split(".")[0] for key in known if key.startswith(prefix)))
    found: dict[str, Any] = {}
    for name, value in node.items():
        if name not in here:
            # A key in the wrong section is as likely as a misspelt key.
            elsewhere = [key for key in known if key.split(".")[-1] == name]
            hint = f"it belongs at {elsewhere[0]}" if elsewhere else nearest(name, here)
            raise InputError(f"{where}: unknown key {prefix}{name if isinstance(name, str) else shown(name)}; {hint}")
        full = prefix + name
        if full in known:
            found[full] = value
        elif isinstance(value, dict):
            found |= _leaves(value, f"{full}.", known, where)
        elif value is not None:  # an empty section
            raise InputError(f"{where}: {full}: expected a section of keys, got {shown(value)}")
    return found


def _decode(value: Any, where: str) -> Any:
    """Decode a value like the official program: text that Python reads as a tuple or number becomes one."""
    if not isinstance(value, str) or not (value.startswith("(") or _NUMBER.fullmatch(value)):
        return value
    try:
        if len(value) > _LONGEST_LITERAL:
            raise ValueError
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        expected = "a tuple" if value.startswith("(") else "a number"
        raise InputError(f"{where}: expected {expected}, got {shown(value)}") from None
