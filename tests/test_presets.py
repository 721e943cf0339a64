"""Presets are values, and the official configuration files give the same values."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmn_fast.checkpoint import IN_THE_BOX
from mmn_fast.errors import InputError
from mmn_fast.presets import PRESETS, LossParams, Preset, Recipe, TextEncoderConfig, get_preset, read_official_yaml
from mmn_fast.weights.state import state_shapes
from tests.test_odd_pools import ODD

# The content of the four official files, in their own notation (tuples are text to YAML).
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


TACOS = "MODEL: {MMN: {}}\nDATASETS: {NAME: tacos}\n"


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
        ("{ unclosed", "not a YAML file"),
        ("MODEL: {MMN: {TEXT_ENCODER: {NAME: LSTM}}}\nDATASETS: {NAME: tacos}", "expected 'BERT', got 'LSTM'"),
        (
            "MODEL: {MMN: {NUM_CLIPS: 100}}\nDATASETS: {NAME: tacos}",
            r"clip_pool_kernel: expected a kernel that leaves 100 of 256 pre-clips at stride 2 \(57 to 58\), got 2",
        ),
        (
            "MODEL: {MMN: {NUM_CLIPS: many}}\nDATASETS: {NAME: tacos}",
            "MODEL.MMN.NUM_CLIPS: expected an integer >= 1, got 'many'",
        ),
        (
            "MODEL: {MMN: {FEAT2D: {NAME: lstm}}}\nDATASETS: {NAME: tacos}",
            "MODEL.MMN.FEAT2D.NAME: expected 'pool' or 'conv'",
        ),
        ("MODEL: {MMN: {FEAT2D: {POOLING_COUNTS: [99, 99]}}}\nDATASETS: {NAME: tacos}", "diagonals within 128 clips"),
        (
            'MODEL: {MMN: {}}\nDATASETS: {NAME: tacos}\nSOLVER: {MILESTONES: "(1, "}',
            "SOLVER.MILESTONES: expected a tuple",
        ),
        ("MODEL: {MMN: {}, TAN: {}}", "expected an official configuration with MODEL.MMN or MODEL.TAN, got both"),
        ("MODEL: {MMN: {LOSS: 3}}\nDATASETS: {NAME: tacos}", "MODEL.MMN.LOSS: expected a section of keys, got 3"),
        # Keys that the official program does not know either.
        (
            "MODEL: {MMN: {LOSS: {MARGIM: 1}}}",
            "unknown key MODEL.MMN.LOSS.MARGIM; did you mean 'MARGIN'",
        ),
        ("MODEL: {MMN: {loss: {MARGIN: 1}}}", "unknown key MODEL.MMN.loss; did you mean 'LOSS'"),
        ("MODEL: {MMN: {}}\nSLOVER: {LR: 1}", "unknown key SLOVER; did you mean 'SOLVER'"),
        ("MODEL: {MMN: {}}\nLR: 1", "unknown key LR; it belongs at SOLVER.LR"),
        ("MODEL: {MMN: {MARGIN: 1}}", "unknown key MODEL.MMN.MARGIN; it belongs at MODEL.MMN.LOSS.MARGIN"),
        (
            "MODEL: {MMN: {TEXT_ENCODER: {QUERY_HIDDEN_SIZE: 1}}}",
            "unknown key MODEL.MMN.TEXT_ENCODER.QUERY_HIDDEN_SIZE",
        ),
        ("MODEL: {MMN: {}}\n1: 2", "unknown key 1; expected one of"),
        # Values of wrong types, or out of range.
        (TACOS + "SOLVER: {LR: fast}", "SOLVER.LR: expected a finite number > 0, got 'fast'"),
        (TACOS + "SOLVER: {LR: .nan}", "SOLVER.LR: expected a finite number > 0, got nan"),
        (TACOS + "SOLVER: {LR: 0}", "SOLVER.LR: expected a finite number > 0, got 0"),
        (TACOS + "SOLVER: {LR: yes}", "SOLVER.LR: expected a finite number > 0, got True"),
        (TACOS + "SOLVER: {LR: 2020-01-01}", r"SOLVER.LR: expected a finite number > 0, got datetime.date\("),
        (TACOS + "SOLVER: {LR: 1e999}", "SOLVER.LR: expected a finite number > 0, got inf"),
        (TACOS + "SOLVER: {LR: 1e-3e}", "SOLVER.LR: expected a number, got '1e-3e'"),
        (TACOS + "SOLVER: {BATCH_SIZE: 0}", "SOLVER.BATCH_SIZE: expected an integer >= 1, got 0"),
        (TACOS + "SOLVER: {BATCH_SIZE: 4.0}", "SOLVER.BATCH_SIZE: expected an integer >= 1, got 4.0"),
        (TACOS + "SOLVER: {MILESTONES: 8}", "SOLVER.MILESTONES: expected a list of 0 to 10000 values, got 8"),
        (TACOS + "SOLVER: {MILESTONES: [a]}", r"SOLVER.MILESTONES\[0\]: expected an integer >= 0, got 'a'"),
        (TACOS + f"SOLVER: {{MILESTONES: '{'(' * 900}'}}", "SOLVER.MILESTONES: expected a tuple"),
        (TACOS + f"SOLVER: {{MILESTONES: '{'(' * 100_000}'}}", "SOLVER.MILESTONES: expected a tuple"),
        (TACOS + "TEST: {BATCH_SIZE: -1}", "TEST.BATCH_SIZE: expected an integer >= 1, got -1"),
        (TACOS + "TEST: {NMS_THRESH: .NaN}", "TEST.NMS_THRESH: expected a number >= 0 and <= 1, got nan"),
        (TACOS + "TEST: {NMS_THRESH: .inf}", "TEST.NMS_THRESH: expected a number >= 0 and <= 1, got inf"),
        (TACOS + "TEST: {NMS_THRESH: 50}", "TEST.NMS_THRESH: expected a number >= 0 and <= 1, got 50"),
        (TACOS + f"INPUT: {{NUM_PRE_CLIPS: {'9' * 5000}}}", "expected integers of 64 bits, got one of 5000 digits"),
        (TACOS + f"INPUT: {{NUM_PRE_CLIPS: {2**40}}}", "NUM_PRE_CLIPS: expected an integer from 1 to 2147483647"),
        # Files that only look valid.
        (TACOS + "TEST: {BATCH_SIZE: 1, BATCH_SIZE: 2}", r"key 'BATCH_SIZE' stands twice \(line 3\)"),
        (TACOS + "DATASETS: {NAME: charades}", "key 'DATASETS' stands twice"),
        ("[" * 100_000, "expected at most 12 levels of nesting, got more"),
        ("{a: " * 100_000, "expected at most 12 levels of nesting, got more"),
        ("- " * 100_000, "expected at most 12 levels of nesting, got more"),
        ("a: &x [1]\nb: *x", r"expected no alias, got \*x"),
        ("a: !!python/object/apply:os.system [ls]", "not a YAML file"),
        ("a: !!int ''", "not a YAML file"),
        ("a: !!bool maybe", "not a YAML file"),
        ("a: \x07", "not a YAML file"),
        ("x" * 2**21, "expected at most 1.05 MB, got more"),
    ],
)
def test_bad_yaml_is_refused_in_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        get_preset(_write(tmp_path / "bad.yaml", text))
    assert "\n" not in str(refusal.value)


def test_unknown_preset_is_refused_with_the_names() -> None:
    with pytest.raises(InputError, match=f"expected one of {', '.join(PRESETS)}"):
        get_preset("charades")


def test_missing_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        get_preset(tmp_path / "absent.yaml")


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_preset_survives_its_own_json(preset: Preset) -> None:
    assert Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_clips": 0}, "num_clips: expected an integer >= 1, got 0"),
        ({"num_clips": 33}, "num_clips: expected at most num_pre_clips, 32, got 33"),
        ({"num_clips": True}, "num_clips: expected an integer >= 1, got True"),
        ({"num_clips": "16"}, "num_clips: expected an integer >= 1, got '16'"),
        ({"clip_pool_kernel": 7}, r"expected a kernel that leaves 16 of 32 pre-clips at stride 2 \(1 to 2\), got 7"),
        ({"conv_kernel": 4, "conv_layers": 3}, "conv_kernel: expected .k - 1. L even"),
        ({"pooling_counts": (0,)}, r"pooling_counts\[0\]: expected an integer >= 1, got 0"),
        ({"pooling_counts": (16,)}, "diagonals within 16 clips"),
        ({"pooling_counts": (1,) * 40}, "pooling_counts: expected a list of 0 to 31 values"),
        ({"score_fusion": "sum"}, "expected 'power' or 'product'"),
        ({"score_fusion": ["power"]}, "expected 'power' or 'product'"),
        ({"score_power": math.nan}, "score_power: expected a finite number >= 0, got nan"),
        ({"nms_iou": math.nan}, "nms_iou: expected a number >= 0 and <= 1, got nan"),
        ({"recall_at": (0,)}, r"recall_at\[0\]: expected an integer >= 1, got 0"),
        ({"recall_ious": (0.5, math.inf)}, r"recall_ious\[1\]: expected a number >= 0 and <= 1, got inf"),
        ({"recall_ious": ()}, "recall_ious: expected a list of 1 to 10000 values"),
        ({"clamp_pre_clips": 1}, "clamp_pre_clips: expected true or false, got 1"),
        ({"feature_key": ""}, "feature_key: expected text of 1 to 10000 characters"),
        ({"name": "\ud800"}, "name: expected text without halves of surrogate pairs"),
        ({"feature_streams": ()}, "feature_streams: expected a list of 1 to 64 values"),
        ({"feature_streams": 4096}, "feature_streams: expected a list of 1 to 64 values, got 4096"),
        ({"loss": {}}, "loss: expected a LossParams, got {}"),
        ({"recipe": None}, "recipe: expected a Recipe, got None"),
    ],
)
def test_impossible_values_are_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(PRESETS["charades-sta"], **change)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (LossParams, {"tau_video": 0}, "loss: tau_video: expected a finite number > 0, got 0"),
        (LossParams, {"margin": math.nan}, "loss: margin: expected a number >= -2 and <= 2, got nan"),
        (LossParams, {"num_positive": 0}, "loss: num_positive: expected an integer >= 1, got 0"),
        (LossParams, {"min_iou": 0.7, "max_iou": 0.7}, "min_iou: expected a number below max_iou, 0.7, got 0.7"),
        (Recipe, {"batch_size": 0}, "recipe: batch_size: expected an integer >= 1, got 0"),
        (Recipe, {"test_batch_size": -4}, "recipe: test_batch_size: expected an integer >= 1, got -4"),
        (Recipe, {"learning_rate": "1e-3"}, "recipe: learning_rate: expected a finite number > 0, got '1e-3'"),
        (Recipe, {"milestones": (3, 4.5)}, r"recipe: milestones\[1\]: expected an integer >= 0, got 4.5"),
        (TextEncoderConfig, {"width": 100, "num_heads": 3}, "width: expected a multiple of num_heads, 3, got 100"),
        (TextEncoderConfig, {"num_layers": 0}, "num_layers: expected an integer >= 1, got 0"),
        (TextEncoderConfig, {"vocab_size": 10**9}, "imply 3.07 TB of weights of the text encoder; at most 17.2 GB"),
        (TextEncoderConfig, {"num_layers": 10**9}, "num_layers: expected an integer from 1 to 1000, got 1000000000"),
    ],
)
def test_impossible_parts_are_refused(kind: type, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(**change)


@pytest.mark.parametrize("size", [10**6, 10**9, 2**31 - 1])
@pytest.mark.parametrize(
    "name",
    [
        *("num_pre_clips", "num_clips", "feature_streams", "hidden_size", "conv_hidden_size", "conv_kernel"),
        *("conv_layers", "joint_size", "pooling_counts"),
    ],
)
def test_sizes_beyond_any_memory_are_refused_at_once(name: str, size: int) -> None:
    values: dict[str, Any] = {name: (size,) if name in ("feature_streams", "pooling_counts") else size}
    if name == "conv_kernel":
        values[name] = size | 1
    if name == "num_clips":
        values |= {"num_pre_clips": size, "clip_pool_kernel": 1, "feature_streams": (1,)}
    if name == "num_pre_clips":
        values["clip_pool_kernel"] = size // 16
    start = time.perf_counter()
    if size == 10**6 and name in ("feature_streams", "joint_size", "num_pre_clips"):
        dataclasses.replace(PRESETS["charades-sta"], **values)  # large, but it fits into memory
    else:
        said = r"imply [0-9.]+ [GTPEZ]B of|imply maps of [0-9]+ x [0-9]+ cells|diagonals within|from 1 to 1000"
        with pytest.raises(InputError, match=said):
            dataclasses.replace(PRESETS["charades-sta"], **values)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("preset", [*PRESETS.values(), *ODD.values()], ids=lambda preset: preset.name)
def test_the_weights_that_sizes_imply_are_those_of_the_model(preset: Preset) -> None:
    text = TextEncoderConfig()
    shapes = state_shapes(preset, text)
    assert preset.num_weights == sum(
        math.prod(shape) for name, shape in shapes.items() if not name.startswith("text_encoder.")
    )


def test_numbers_have_one_form() -> None:
    """Presets are equal, and have equal JSON, however their numbers were written."""
    plain = dataclasses.replace(PRESETS["tacos"], name="x")
    other = dataclasses.replace(
        plain,
        feature_streams=[4096],
        num_clips=np.int64(128),
        score_power=np.float64(0.3),
        recipe=Recipe(**vars(plain.recipe)),
    )
    assert json.dumps(other.to_dict()) == json.dumps(plain.to_dict())
    assert hash(other) == hash(plain)
    one = dataclasses.replace(plain, score_power=1)
    assert json.dumps(one.to_dict()["score_power"]) == "1.0"


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "1.e-3", "+1e-3", "0.001", '"1e-3"', "'0.001'", "0.1e-2", ".1e-2"])
def test_numbers_in_yaml_are_read_as_the_official_program_reads_them(written: str, tmp_path: Path) -> None:
    read = get_preset(_write(tmp_path / "a.yaml", TACOS + f"SOLVER: {{LR: {written}, BATCH_SIZE: '7'}}"))
    assert (read.recipe.learning_rate, read.recipe.batch_size) == (0.001, 7)


def test_every_key_of_the_official_defaults_is_known(tmp_path: Path) -> None:
    text = """
MODEL:
  DEVICE: cuda
  ARCHITECTURE: TAN
  TAN:
    NUM_CLIPS: 16
    FEATPOOL: {INPUT_SIZE: [1024]}
    FEAT2D: {POOLING_COUNTS: [15]}
    TEXT_ENCODER: {QUERY_HIDDEN_SIZE: 512, NAME: BERT, LSTM: {NUM_LAYERS: 3, BIDIRECTIONAL: False}}
    LOSS: {BCE_WEIGHT: 1, PAIRWISE_SENT_WEIGHT: 0.0}
INPUT: {NUM_PRE_CLIPS: 32, PRE_QUERY_SIZE: 300}
DATASETS: {TRAIN: [], TEST: [], NAME: stvg, METRIC_TENSORBOARD: True}
DATALOADER: {NUM_WORKERS: 4}
SOLVER: {CHECKPOINT_PERIOD: 1, TEST_PERIOD: 1, RESUME: False, RESUME_EPOCH: 1, SKIP_TEST: 0}
TEST:
OUTPUT_DIR: "."
PATHS_CATALOG: paths_catalog.py
"""
    assert get_preset(_write(tmp_path / "a.yaml", text)).feature_streams == (1024,)


def test_from_dict_names_missing_and_unknown_values() -> None:
    values = PRESETS["tacos"].to_dict()
    with pytest.raises(InputError, match="preset 'tacos': unknown key 'num_clip'; did you mean 'num_clips'"):
        Preset.from_dict(values | {"num_clip": 3})
    with pytest.raises(InputError, match="preset 'tacos': recipe: unknown key 'lr'; expected one of learning_rate, "):
        Preset.from_dict(values | {"recipe": {"lr": 3}})
    with pytest.raises(InputError, match="preset 'tacos': loss: margin: expected a number"):
        Preset.from_dict(values | {"loss": {"margin": "wide"}})
    with pytest.raises(InputError, match="preset 'tacos': recipe: expected an object with learning_rate, .*, got 3"):
        Preset.from_dict(values | {"recipe": 3})
    with pytest.raises(InputError, match="preset: expected an object, got None"):
        Preset.from_dict(None)
    del values["num_clips"], values["joint_size"]
    with pytest.raises(InputError, match="preset 'tacos': missing num_clips, joint_size"):
        Preset.from_dict(values)


@pytest.mark.slow
def test_only_presets_compares_with_a_datasets_name() -> None:
    """Prose may name a dataset, but code may not depend on the name: it reads a value of the preset."""
    names = {*PRESETS, "charades", "activitynet", "stvg"} - IN_THE_BOX.keys()  # a model may have its preset's name
    package = Path(__file__).parents[1] / "mmn_fast"
    for path in package.rglob("*.py"):
        constants = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        found = [value for value in constants if isinstance(value, str) and value.lower() in names]
        assert not found or path.name == "presets.py", f"{path}: {found}"


def test_a_run_takes_the_official_constants_of_its_family() -> None:
    """Constants that no configuration file has: MMN's, and those of HC-STVG's program."""
    mmn = [preset.recipe for preset in PRESETS.values() if not preset.of_tubes]
    assert {(r.betas, r.weight_decay, r.max_gradient_norm, r.processes) for r in mmn} == {((0.9, 0.99), 1e-5, 5.0, 1)}
    tubes = PRESETS["hc-stvg"].recipe
    assert (tubes.betas, tubes.weight_decay, tubes.max_gradient_norm) == ((0.9, 0.999), 1e-6, 10.0)
    assert (tubes.batch_size, tubes.processes, tubes.seed) == (32, 8, 25285)
