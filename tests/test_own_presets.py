"""Presets of one's own: files that `preset new` writes, told from official files, taken wherever a preset is taken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mmn_fast.checkpoint import load_model
from mmn_fast.cli import app
from mmn_fast.cli.presets.drawing import draw_map
from mmn_fast.cli.presets.facts import PresetFacts
from mmn_fast.cli.presets.values import FullRecipeOptions, LossOptions, SizeOptions
from mmn_fast.errors import InputError
from mmn_fast.geometry import plan_for, proposal_mask
from mmn_fast.preset_files.own import own_text
from mmn_fast.presets import PRESETS, LossParams, Preset, Recipe, get_preset
from tests.command import run_here
from tests.training_runs import command_of
from tests.training_task import PRESET

DOCS = Path(__file__).parents[1] / "docs"
WIDER = ("--num-pre-clips", "256", "--num-clips", "64", "--clip-pool-kernel", "4", "--pooling-counts", "15,8,8")


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["preset", *arguments])
    assert done.exit_code == 0, f"{done.output}{done.exception}"
    return done.stdout


def written(tmp_path: Path, text: str, name: str = "mine.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def refused(*arguments: str) -> str:
    done = run_here(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


@pytest.mark.parametrize("name", PRESETS)
def test_a_written_preset_is_read_back_to_the_bit(name: str, tmp_path: Path) -> None:
    mine = Preset.from_dict(PRESETS[name].to_dict() | {"name": "mine's: \x1b #1"})
    text = own_text(mine, "a command\nof two lines \x1b")
    assert get_preset(written(tmp_path, text)) == mine
    assert max(map(len, text.splitlines())) <= 120
    assert "  # T, number of averaged features per video\n" in text


def test_options_replace_values_of_the_base(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    recipe = ("--betas", "0.9,0.98", "--milestones", "3", "--epochs", "5")
    given = ("--input-size", "512", *WIDER, "--margin", "0.2", *recipe)
    said = run("new", "--from", "charades-sta", *given, "--no-clamp-pre-clips", "-o", str(path))
    assert said == f"{path}: preset mine, 1104 proposals, 280 GFLOP per video\n"
    mine, base = get_preset(path), PRESETS["charades-sta"]
    assert (mine.name, mine.input_size, mine.num_clips, mine.pooling_counts) == ("mine", 512, 64, (15, 8, 8))
    assert (mine.loss.margin, mine.recipe.betas, mine.recipe.milestones) == (0.2, (0.9, 0.98), (3,))
    assert (mine.clamp_pre_clips, mine.conv_kernel, mine.recipe.batch_size) == (False, 5, base.recipe.batch_size)
    again = tmp_path / "second.yml"
    run("new", "--from", str(path), "--feature-key", "c3d", "--name", "other", "-o", str(again))
    assert get_preset(again) == Preset.from_dict(mine.to_dict() | {"name": "other", "feature_key": "c3d"})
    third = tmp_path / "third.yaml"
    run("new", "--from", str(again), "--feature-key", "", "--feature-streams", "256,256", "-o", str(third))
    assert (get_preset(third).feature_key, get_preset(third).feature_streams) == (None, (256, 256))


def test_every_value_of_a_preset_has_an_option() -> None:
    fields = lambda kind: set(kind.__dataclass_fields__)  # noqa: E731
    assert fields(SizeOptions) - {"input_size"} == fields(Preset) - {"name", "loss", "recipe"}
    assert fields(LossOptions) == fields(LossParams)
    assert fields(FullRecipeOptions) == fields(Recipe)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--num-clips", "64"], "preset 'mine': --num-clips: expected at most --num-pre-clips, 32, got 64"),
        (["--pooling-counts", "16"], "preset 'mine': --pooling-counts: expected diagonals within 16 clips, got (16,)"),
        (["--conv-kernel", "4", "--conv-layers", "3"], "preset 'mine': --conv-kernel: expected (k - 1) L even"),
        (["--clip-pool-kernel", "3"], "preset 'mine': --clip-pool-kernel: expected a kernel that leaves 16 of 32"),
        (["--min-iou", "1"], "--min-iou: expected a number below --max-iou, 1.0, got 1.0"),
        (["--betas", "0.9"], "--betas: expected a list of 2 values"),
        (["--betas", "0.9,x"], "--betas: expected numbers separated by commas, got '0.9,x'"),
        (["--input-size", "4", "--feature-streams", "4"], "--input-size: give it or --feature-streams, not both"),
        (["--conv-hidden-size", "1000000"], "preset 'mine': these sizes imply"),
        (["--from", "charades"], "--from: expected one of charades-sta, "),
        (["--name", "tacos"], "--name: expected a name of its own, got 'tacos', a preset of mmn_fast"),
        (["-o", "mine.json"], "--output: expected a file that ends in .yaml, got 'mine.json'"),
        (["-o", "absent/mine.yaml"], "--output: cannot write absent/mine.yaml: no such folder absent"),
    ],
)
def test_what_makes_no_preset_is_refused(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = [] if "--from" in arguments else ["--from", "charades-sta"]
    target = [] if "-o" in arguments else ["-o", "mine.yaml"]
    said = refused("preset", "new", *base, *target, *arguments)
    assert said.startswith(f"mmn-fast: {sentence}"), said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mmn_fast_preset": 2}, "mmn_fast_preset: expected 1, the version of this format, got 2"),
        ({"mmn_fast_preset": True}, "mmn_fast_preset: expected 1, the version of this format, got True"),
        ({"name": "tacos"}, "name: expected a name of its own, got 'tacos', a preset of mmn_fast"),
        ({"name": []}, "name: expected text of 1 to 255 characters, got []"),
        ({"num_clip": 8}, "unknown key 'num_clip'; did you mean 'num_clips'?"),
        ({"MODEL": {"MMN": {}}}, "unknown key 'MODEL'; expected one of name"),
        ({"num_clips": "8"}, "num_clips: expected an integer >= 1, got '8'"),
        ({"num_clips": 99}, "num_clips: expected at most num_pre_clips, 16, got 99"),
        ({"loss": None}, "loss: expected an object with"),
        ({"recipe": {"epoch": 3}}, "recipe: unknown key 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_a_bad_file_is_refused_by_its_name(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    values = {"mmn_fast_preset": 1, **PRESET.to_dict()} | change
    path = written(tmp_path, json.dumps(values))  # JSON is YAML
    with pytest.raises(InputError) as error:
        get_preset(path)
    assert str(error.value).startswith(f"preset: {path}: {sentence}"), error.value


def test_a_file_without_name_is_named_by_its_stem_and_defaults_fill_in(tmp_path: Path) -> None:
    values = {key: value for key, value in PRESET.to_dict().items() if key not in ("name", "loss", "score_power")}
    path = written(tmp_path, json.dumps({"mmn_fast_preset": 1, **values}), "by hand.yml")
    read = get_preset(path)
    assert (read.name, read.loss, read.score_power) == ("by hand", LossParams(), 0.5)


def test_a_file_of_neither_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="MODEL.MMN or MODEL.TAN; a preset file of your own has the key mmn_fast_pre"):
        get_preset(written(tmp_path, "num_clips: 3\n"))


@pytest.mark.slow
def test_train_takes_a_file_and_the_model_keeps_the_preset(task: dict[str, Path], tmp_path: Path) -> None:
    preset = written(tmp_path, own_text(PRESET, "a test"), "small.yaml")
    done = CliRunner().invoke(app, command_of(preset, task, tmp_path / "run", "--epochs", "1", "--milestones", ""))
    assert done.exit_code == 0, done.output
    assert load_model(tmp_path / "run" / "model").preset.pooling_counts == PRESET.pooling_counts


def test_show_says_seconds_and_draws_the_map() -> None:
    text = run("show", "charades-sta", "--duration", "32")
    assert "P = 136 of 136 spans" in text
    assert "shortest 2 s, longest 32 s in a video of 32 s" in text
    facts = json.loads(run("show", "activitynet-captions", "--duration", "64", "--json"))
    assert (facts["num_proposals"], facts["moments"]["longest_s"], facts["preset"]["num_clips"]) == (1104, 64.0, 64)
    assert set(json.loads(run("list", "--json"))) == set(PRESETS)
    assert refused("preset", "show", "tacos", "--duration", "0").startswith("mmn-fast: --duration: expected a positive")


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize(("side", "width"), [(1, 80), (7, 14), (16, 80), (64, 60), (100, 20), (5, 1)])
def test_a_drawing_fits_and_shows_every_cell(side: int, width: int, ascii_only: bool) -> None:
    mask = proposal_mask(side, (side - 1,) if side < 16 else (7, 4))
    lines = draw_map(mask, width, ascii_only)
    assert max(map(len, lines)) <= width
    assert not ascii_only or "".join(lines).isascii()
    if 2 * side <= width:
        shown = np.array([[line.ljust(2 * side)[2 * j] in "█#" for j in range(side)] for line in lines])
        assert np.array_equal(shown, mask)
    elif not ascii_only and side <= 2 * width:
        codes = [[ord(c) - 0x2800 if c != " " else 0 for c in line.ljust(-(-side // 2))] for line in lines]
        assert sum(code.bit_count() for row in codes for code in row) == mask.sum()


def test_the_work_is_that_of_the_plan() -> None:
    """Against the convolutions' own products, counted layer by layer."""
    preset = PRESETS["hc-stvg"]
    facts, plan = PresetFacts.of(preset), plan_for(preset)
    heads, clips = 2 * plan.num_proposals * 512 * 512, 2 * 32 * 2048 * 512
    assert facts.gflop * 1e9 == pytest.approx(2 * plan.exact_taps * 512**2 + heads + clips)
    assert facts.gflop_dense * 1e9 == pytest.approx(2 * plan.dense_taps * 512**2 + heads + clips)
    assert (facts.reach, facts.shortest_clips, facts.longest_clips) == (12, 1, 16)


def test_the_table_of_sizes_is_true() -> None:
    rows = re.findall(
        r"^\| (\d+) (s|min) \| (\d+) \| (\d+) \| ([\d,]+) \| ([\d.]+) s \| (\d+) \| (\d+) \|$",
        (DOCS / "presets.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) == 5
    for number, unit, T, N, counts, clip_s, proposals, gflop in rows:
        seconds = int(number) * (60 if unit == "min" else 1)
        mine = PRESETS["charades-sta"].to_dict() | {
            "name": "mine",
            "num_pre_clips": int(T),
            "num_clips": int(N),
            "clip_pool_kernel": int(T) // int(N),
            "pooling_counts": [int(count) for count in counts.split(",")],
            "feature_streams": [512],
        }
        preset = Preset.from_dict(mine)
        facts = PresetFacts.of(preset)
        moments = facts.moments(preset, seconds)
        assert f"{moments['clip_s']:.1f}" == clip_s
        assert (facts.num_proposals, f"{facts.gflop:.0f}", moments["longest_s"]) == (int(proposals), gflop, seconds)
