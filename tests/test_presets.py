"""Presets as values, and the official configuration files."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from mmn_fast.presets import PRESETS, Preset, get_preset, read_official_yaml
from mmn_fast.types import InputError

# What the four official files say, as they write it (tuples are text to YAML).
OFFICIAL = {
    "charades-sta": """
MODEL:
  ARCHITECTURE: "MMN"
  MMN:
    NUM_CLIPS: 16
    JOINT_SPACE_SIZE: 256
    FEATPOOL: {INPUT_SIZE: 4096, HIDDEN_SIZE: 512, KERNEL_SIZE: 2}
    FEAT2D: {NAME: "pool", POOLING_COUNTS: [15]}
    TEXT_ENCODER: {NAME: "BERT"}
    PREDICTOR: {HIDDEN_SIZE: 512, KERNEL_SIZE: 5, NUM_STACK_LAYERS: 8}
    LOSS: {MIN_IOU: 0.5, MAX_IOU: 1.0, NUM_POSTIVE_VIDEO_PROPOSAL: 1, NEGATIVE_VIDEO_IOU: 0.5,
           SENT_REMOVAL_IOU: 0.5, TAU_VIDEO: 0.1, TAU_SENT: 0.1, MARGIN: 0.4, CONTRASTIVE_WEIGHT: 0.05}
DATASETS: {NAME: "charades", TRAIN: ("charades_train", ), TEST: ("charades_test",)}
INPUT: {NUM_PRE_CLIPS: 32}
DATALOADER: {NUM_WORKERS: 16}
SOLVER: {LR: 0.0001, BATCH_SIZE: 48, MILESTONES: "(8, 13)", MAX_EPOCH: 18, TEST_PERIOD: 1, FREEZE_BERT: 4, ONLY_IOU: 7}
TEST: {NMS_THRESH: 0.5, BATCH_SIZE: 48, CONTRASTIVE_SCORE_POW: 0.5}
""",
    "tacos": """
MODEL:
  MMN:
    NUM_CLIPS: 128
    FEATPOOL: {INPUT_SIZE: 4096, HIDDEN_SIZE: 512, KERNEL_SIZE: 2}
    FEAT2D: {NAME: "pool", POOLING_COUNTS: [15, 8, 8, 8]}
    LOSS: {NUM_POSTIVE_VIDEO_PROPOSAL: 3, TAU_VIDEO: 0.1, TAU_SENT: 0.1, MARGIN: 0.1, CONTRASTIVE_WEIGHT: 0.1}
DATASETS: {NAME: "tacos"}
SOLVER: {LR: 0.0015, BATCH_SIZE: 4, MILESTONES: "(130, 190)", MAX_EPOCH: 250, FREEZE_BERT: 40, ONLY_IOU: 100}
TEST: {NMS_THRESH: 0.4, BATCH_SIZE: 16, CONTRASTIVE_SCORE_POW: 0.3}
""",
    "hc-stvg": """
MODEL:
  ARCHITECTURE: "TAN"
  TAN:
    NUM_CLIPS: 16
    JOINT_SPACE_SIZE: 256
    FEATPOOL: {INPUT_SIZE: [1024, 1024], HIDDEN_SIZE: 512, KERNEL_SIZE: 2}
    FEAT2D: {NAME: "pool", POOLING_COUNTS: [15]}
    TEXT_ENCODER: {NAME: "BERT", QUERY_HIDDEN_SIZE: 1024, LSTM: {NUM_LAYERS: 5, BIDIRECTIONAL: True}}
    PREDICTOR: {HIDDEN_SIZE: 512, KERNEL_SIZE: 7, NUM_STACK_LAYERS: 4}
    LOSS: {MIN_IOU: 0.3, MAX_IOU: 0.9, NUM_POSTIVE_VIDEO_PROPOSAL: 1, TAU_VIDEO: 0.1, TAU_SENT: 0.1, MARGIN: 0.4,
           CONTRASTIVE_WEIGHT: 0.1}
DATASETS: {NAME: "stvg"}
INPUT: {NUM_PRE_CLIPS: 32, PRE_QUERY_SIZE: 300}
SOLVER: {LR: 0.0001, BATCH_SIZE: 32, MILESTONES: "(11, 16)", MAX_EPOCH: 20, FREEZE_BERT: 5, ONLY_IOU: 10}
TEST: {NMS_THRESH: 0.5, BATCH_SIZE: 32, CONTRASTIVE_SCORE_POW: 0.5}
""",
}


def _write(path: Path, text: str) -> Path:
    path.write_text(text.replace('("charades_train", )', "[a]").replace('("charades_test",)', "[b]"))
    return path


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_yaml_gives_the_preset(name: str, tmp_path: Path) -> None:
    read = get_preset(_write(tmp_path / "official.yaml", OFFICIAL[name]))
    assert read == dataclasses.replace(PRESETS[name], name="official")


def test_yaml_values_override_and_defaults_fill_in(tmp_path: Path) -> None:
    text = "MODEL: {MMN: {FEATPOOL: {INPUT_SIZE: 20}, PREDICTOR: {HIDDEN_SIZE: 48}}}\nDATASETS: {NAME: tacos}\n"
    preset = read_official_yaml(_write(tmp_path / "small.yml", text))
    assert (preset.input_size, preset.conv_hidden_size, preset.joint_size) == (20, 48, 256)
    assert preset.recipe.milestones == (8, 11)
    assert preset.timestamp_unit == "frames"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: {MMN: {}}\nDATASETS: {NAME: didemo}", "DATASETS.NAME: expected one of .*got 'didemo'"),
        ("MODEL: {RESNET: {}}", "expected an official configuration with MODEL.MMN or MODEL.TAN"),
        ("- 1\n- 2", "expected an official configuration"),
        ("{ unclosed", "is not a YAML file"),
        ("MODEL: {MMN: {TEXT_ENCODER: {NAME: LSTM}}}\nDATASETS: {NAME: tacos}", "expected 'BERT', got 'LSTM'"),
        ("MODEL: {MMN: {NUM_CLIPS: 100}}\nDATASETS: {NAME: tacos}", "num_clips: expected a divisor of 256, got 100"),
        ("MODEL: {MMN: {NUM_CLIPS: many}}\nDATASETS: {NAME: tacos}", "num_clips: expected an integer >= 1, got 'many'"),
        ("MODEL: {MMN: {FEAT2D: {NAME: lstm}}}\nDATASETS: {NAME: tacos}", "pooling: expected 'pool' or 'conv'"),
        ("MODEL: {MMN: {FEAT2D: {POOLING_COUNTS: [99, 99]}}}\nDATASETS: {NAME: tacos}", "diagonals within 128 clips"),
        (
            'MODEL: {MMN: {}}\nDATASETS: {NAME: tacos}\nSOLVER: {MILESTONES: "(1, "}',
            "SOLVER.MILESTONES: expected a tuple",
        ),
    ],
)
def test_bad_yaml_is_refused_in_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        get_preset(_write(tmp_path / "bad.yaml", text))
    assert "\n" not in str(refusal.value)


def test_unknown_preset_is_refused_with_the_names() -> None:
    with pytest.raises(InputError, match="expected one of charades-sta, activitynet-captions, tacos, hc-stvg, shapes"):
        get_preset("charades")


def test_missing_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        get_preset(tmp_path / "absent.yaml")


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_preset_survives_its_own_json(preset: Preset) -> None:
    import json

    assert Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_clips": 0}, "num_clips: expected an integer >= 1, got 0"),
        ({"clip_pool_kernel": 7}, "clip_pool_kernel: expected a kernel that leaves 16 clips, got 7"),
        ({"conv_kernel": 4, "conv_layers": 3}, "conv_kernel: expected .k - 1. L even"),
        ({"pooling_counts": (0,)}, r"pooling_counts: expected integers >= 1, got \(0,\)"),
        ({"pooling_counts": (16,)}, "diagonals within 16 clips"),
        ({"score_fusion": "sum"}, "expected 'power' or 'product'"),
        ({"feature_streams": ()}, "feature_streams: expected at least one width"),
    ],
)
def test_impossible_values_are_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(PRESETS["charades-sta"], **change)


def test_from_dict_names_missing_and_unknown_values() -> None:
    values = PRESETS["tacos"].to_dict()
    del values["num_clips"]
    with pytest.raises(InputError, match=r"missing \['num_clips'\], unknown \['clips'\]"):
        Preset.from_dict(values | {"clips": 3})


def test_only_presets_compares_with_a_datasets_name() -> None:
    """Prose may speak of a dataset; code that needs to know one takes a value of the preset."""
    names = {*PRESETS, "charades", "activitynet", "stvg"}
    package = Path(__file__).parents[1] / "mmn_fast"
    for path in package.rglob("*.py"):
        constants = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        found = [value for value in constants if isinstance(value, str) and value.lower() in names]
        assert not found or path.name == "presets.py", f"{path}: {found}"
