"""The shapes world: its sentences are true, clear and reproducible; all tools read its files."""

from __future__ import annotations

import inspect
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from mmn_fast.cli import app
from mmn_fast.cli.train import shapes as shapes_command
from mmn_fast.demo import scenes, sentences
from mmn_fast.demo.rendering import render
from mmn_fast.demo.scenes import ACTION_NAMES, COLOURS, FPS, SHAPES, Fact, Scene, Thing, Track, action_name
from mmn_fast.demo.shapes import DEFAULT_COUNTS, SPLITS, ShapesVideo, held_out, make_video, write_dataset
from mmn_fast.errors import InputError
from mmn_fast.evaluation import read_annotations
from mmn_fast.features import open_features
from mmn_fast.features.extractors import pixels
from mmn_fast.features.extractors.pixels import CHANGES, CHANNELS, LOOKS, PixelFeatures
from mmn_fast.presets import PRESETS
from mmn_fast.tokenizer import load_tokenizer
from tests.tolerances import check_close

NUMBERS = range(60)


@pytest.fixture(scope="module")
def videos() -> dict[str, list[ShapesVideo]]:
    return {split: [make_video(split, 0, number) for number in NUMBERS] for split in SPLITS}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("shapes") / "data"
    write_dataset(output, seed=3, counts={"train": 4, "val": 2, "test": 2, "test_unseen": 2}, workers=1)
    return output


def _all(videos: dict[str, list[ShapesVideo]]) -> list[ShapesVideo]:
    return list(itertools.chain.from_iterable(videos.values()))


# The world


def test_a_video_is_the_same_for_the_same_arguments() -> None:
    first, second = make_video("val", 7, 3), make_video("val", 7, 3)
    assert first.annotation() == second.annotation()
    np.testing.assert_array_equal(first.frames(), second.frames())
    np.testing.assert_array_equal(first.features, second.features)


def test_splits_seeds_and_numbers_give_other_videos() -> None:
    made = [make_video(*key) for key in (("train", 0, 0), ("val", 0, 0), ("train", 1, 0), ("train", 0, 1))]
    assert len({json.dumps(video.annotation()) for video in made}) == len({video.video_id for video in made}) == 4


def test_every_sentence_fits_one_fact_of_its_video(videos: dict[str, list[ShapesVideo]]) -> None:
    for video in _all(videos):
        for sentence in video.sentences:
            fitting = [fact for fact in video.scene.facts if sentence.claim.fits(fact)]
            assert fitting == [sentence.fact], f"{video.video_id}: {sentence.text}"


def test_a_claim_matches_its_words(videos: dict[str, list[ShapesVideo]]) -> None:
    """The colours and forms that are read back from the text equal the claimed ones."""
    colours = {word: name for name, words in sentences.COLOUR_WORDS.items() for word in words}
    shapes = {word.split()[0]: name for name, words in sentences.SHAPE_WORDS.items() for word in words}
    for video in _all(videos):
        for sentence in video.sentences:
            words = sentence.text.split()
            said = [colours[word] for word in words if word in colours]
            meant = [thing.colour for thing in sentence.claim.things]
            assert said == meant + [sentence.fact.detail] * (sentence.fact.action == "recolour")
            forms = [shapes[word] for word in words if word in shapes]
            assert forms == [thing.shape for thing in sentence.claim.things if thing.shape]


def test_times_lie_within_the_video_and_events_overlap(videos: dict[str, list[ShapesVideo]]) -> None:
    overlapping = 0
    for video in _all(videos):
        assert 10 <= video.duration_s <= 17
        spans = [(fact.start_s, fact.end_s) for fact in scenes.named_facts(video.scene)]
        for start, end in spans:
            assert 0 <= start < end <= video.duration_s
            assert 0.13 * video.duration_s <= end - start <= 0.5 * video.duration_s
        overlapping += any(a[0] < b[1] and b[0] < a[1] for a, b in itertools.combinations(spans, 2))
    assert overlapping > 0.9 * len(_all(videos))


def test_times_are_no_multiples_of_a_clip_or_frame(videos: dict[str, list[ShapesVideo]]) -> None:
    starts = np.array([fact.start_s for video in _all(videos) for fact in scenes.named_facts(video.scene)])
    for grid in (1 / FPS, 2 / FPS):
        off = np.abs(starts / grid - np.rint(starts / grid))
        assert 0.2 < off.mean() < 0.3  # 0.25 if uniform


def test_every_action_colour_and_shape_occurs(videos: dict[str, list[ShapesVideo]]) -> None:
    for split in ("train", "test"):
        facts = [sentence.fact for video in videos[split] for sentence in video.sentences]
        assert {action_name(fact) for fact in facts} == set(ACTION_NAMES)
        assert {thing.colour for fact in facts for thing in fact.things} == set(COLOURS)
        assert {thing.shape for fact in facts for thing in fact.things} == set(SHAPES)


def test_held_out_combinations_happen_in_test_unseen_alone(videos: dict[str, list[ShapesVideo]]) -> None:
    for split in ("train", "val", "test"):
        for video in videos[split]:
            for fact in scenes.named_facts(video.scene):
                assert not any(held_out(thing.colour, thing.shape, action_name(fact)) for thing in fact.things)
    for video in videos["test_unseen"]:
        assert video.sentences
        for sentence in video.sentences:
            fact = sentence.fact
            assert any(held_out(thing.colour, thing.shape, action_name(fact)) for thing in fact.things)


def test_no_word_stands_for_two_colours_or_shapes() -> None:
    """A combination that is held out is therefore held out under all of its synonyms."""
    for table in (sentences.COLOUR_WORDS, sentences.SHAPE_WORDS):
        words = list(itertools.chain.from_iterable(table.values()))
        assert len(words) == len(set(words))
    assert set(sentences.COLOUR_WORDS) == set(COLOURS)
    assert set(sentences.SHAPE_WORDS) == set(SHAPES)


def test_every_pair_of_a_held_out_combination_is_trained_on() -> None:
    seen = [c for c in itertools.product(COLOURS, SHAPES, ACTION_NAMES) if not held_out(*c)]
    assert 0.85 < len(seen) / (len(COLOURS) * len(SHAPES) * len(ACTION_NAMES)) < 0.9
    for axes in ((0, 1), (0, 2), (1, 2)):
        pairs = {tuple(combination[axis] for axis in axes) for combination in seen}
        everything = [(COLOURS, SHAPES, ACTION_NAMES)[axis] for axis in axes]
        assert len(pairs) == len(everything[0]) * len(everything[1])


def test_frames_show_what_the_facts_say() -> None:
    """A single square moves right: the centre of its pixels moves right during the fact, and only then."""
    start, end, rgb = 2.0, 4.0, (0.9, 0.1, 0.1)
    at = [[x, 0.5, np.log(0.1), 0.0, *rgb] for x in (0.3, 0.3, 0.7, 0.7)]
    track = Track("square", np.array([0.0, start, end, 6.0]), np.array(at), ())
    fact = Fact("move", (Thing("red", "square"),), start, end, "right")
    frames = render(Scene(48, (0.1, 0.1, 0.1), (track,), (fact,)), size=64)
    assert frames.shape == (48, 64, 64, 3)
    assert frames.dtype == np.uint8
    red = frames[..., 0].astype(float) - 26
    centre = (red.sum(axis=1) * np.arange(0.5, 64)).sum(axis=1) / red.sum(axis=(1, 2))
    times = (np.arange(48) + 0.5) / FPS
    check_close(centre / 64, np.interp(times, [start, end], [0.3, 0.7]), "rendered_centre")


def test_shapes_that_left_stay_away_and_blinking_shapes_come_back(videos: dict[str, list[ShapesVideo]]) -> None:
    background = {"leave": 0, "blink": 0}
    for video in videos["test"][:20]:
        times = (np.arange(video.scene.num_frames) + 0.5) / FPS
        for track in video.scene.tracks:
            for start, end in track.blinks:
                shown = track.visible(times)
                assert shown[(times < start) | (times >= end)].all()
                assert 0.3 < shown[(times >= start) & (times < end)].mean() < 0.7
                background["blink"] += 1
        for fact in scenes.named_facts(video.scene):
            if fact.action == "leave":
                (gone,) = [t for t in video.scene.tracks if np.isclose(t.times, fact.end_s).any()]
                x, y, log_radius = gone.at(np.array([video.duration_s]))[0, :3]
                assert max(abs(x - 0.5), abs(y - 0.5)) >= 0.5 + 1.15 * np.exp(log_radius)
                background["leave"] += 1
    assert min(background.values()) > 0


# Features


def _square_frames(size: int = 64, count: int = 12, step: float = 1.0, height: int | None = None) -> Any:
    frames = np.full((count, height or size, size, 3), 30, np.uint8)
    for number in range(count):
        left = int(8 + step * number)
        frames[number, 10:22, left : left + 12] = (230, 20, 20)
    return frames


def test_features_have_the_stated_shape_and_are_finite(videos: dict[str, list[ShapesVideo]]) -> None:
    for video in videos["test"][:5]:
        features = video.features
        assert features.shape == ((video.scene.num_frames + 1) // 2, PixelFeatures.width)
        assert features.dtype == np.float32
        assert np.isfinite(features).all()
        assert np.abs(features).max() <= 4


def test_features_have_the_presets_width() -> None:
    assert PRESETS["shapes"].input_size == PixelFeatures.width


@pytest.mark.parametrize("shape", [(1, 64, 64), (5, 31, 47), (3, 1, 1), (4, 200, 333), (2, 5, 300), (7, 480, 640)])
def test_features_take_any_size_and_a_single_frame(shape: tuple[int, int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    features = PixelFeatures(clip_frames=2)(frames)
    assert features.shape == ((shape[0] + 1) // 2, PixelFeatures.width)
    assert np.isfinite(features).all()


@pytest.mark.parametrize("shape", [(1, 256, 256), (2, 200, 333), (2, 5, 300), (1, 2, 700), (1, 1080, 1920)])
def test_large_frames_are_shrunk_by_plain_means(shape: tuple[int, int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    factor = max(shape[1:]) // 64
    height, width = (max(side // factor, 1) for side in shape[1:])
    cut = frames[:, : height * factor, : width * factor]
    blocks = cut.reshape(len(cut), height, min(factor, cut.shape[1]), width, min(factor, cut.shape[2]), 3)
    expected = blocks.mean(axis=(2, 4), dtype=np.float32) / np.float32(255)
    np.testing.assert_array_equal(pixels._shrunk(frames), expected)


def test_features_of_nothing_are_zero_and_a_still_picture_changes_nothing() -> None:
    assert not PixelFeatures()(np.full((6, 32, 32, 3), 77, np.uint8)).any()
    still = PixelFeatures()(np.repeat(_square_frames(count=1), 6, axis=0))
    per_channel = still[:, : CHANNELS * (len(LOOKS) + len(CHANGES))].reshape(3, CHANNELS, -1)
    assert per_channel[..., : len(LOOKS)].any()
    assert not per_channel[..., len(LOOKS) :].any()


def test_features_tell_colour_direction_and_form() -> None:
    def red(features: Any) -> dict[str, float]:
        return dict(zip(LOOKS + CHANGES, features[2][: len(LOOKS) + len(CHANGES)], strict=True))

    extractor = PixelFeatures()
    right, left = extractor(_square_frames()), extractor(_square_frames()[::-1])
    assert red(right)["amount"] > 0.3
    assert red(right)["right"] > 0.5
    assert red(left)["left"] > 0.5
    for features, names in ((right, ("left", "up", "down", "growth", "tint")), (left, ("right", "up", "down"))):
        assert all(red(features)[name] < 0.01 for name in names)
    assert red(right)["4-fold"] > 2 * red(right)["3-fold"]
    blue = extractor(np.ascontiguousarray(_square_frames()[..., ::-1]))
    assert red(blue)["amount"] == 0


@pytest.mark.parametrize(
    ("frames", "came"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), "float32"),
        (np.zeros((4, 8, 8), np.uint8), r"uint8 \[4, 8, 8\]"),
        (np.zeros((4, 8, 8, 4), np.uint8), r"uint8 \[4, 8, 8, 4\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"uint8 \[0, 8, 8, 3\]"),
    ],
)
def test_features_refuse_other_frames_in_one_sentence(frames: Any, came: str) -> None:
    with pytest.raises(InputError, match=rf"frames: expected uint8 \[F, H, W, 3\].*got {came}"):
        PixelFeatures()(frames)


@pytest.mark.parametrize(("options", "name"), [({"fps": 0}, "fps"), ({"clip_frames": 0}, "clip_frames")])
def test_features_refuse_impossible_options(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: expected"):
        PixelFeatures(**options)


# The files


def test_annotations_read_back_strictly(dataset: Path) -> None:
    for split, count in {"train": 4, "val": 2, "test": 2, "test_unseen": 2}.items():
        samples = read_annotations(dataset / f"{split}.json", strict=True)
        assert [sample.video_id for sample in samples] == [f"{split}-3-{n:05}" for n in range(count)]
        for number, sample in enumerate(samples):
            video = make_video(split, 3, number)
            assert sample.duration_s == video.duration_s
            assert sample.sentences == tuple(sentence.text for sentence in video.sentences)
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert manifest["seed"] == 3
    assert manifest["splits"]["train"]["videos"] == 4


def test_features_read_back_for_every_video(dataset: Path) -> None:
    with open_features(dataset / "features.h5", None) as store, h5py.File(dataset / "features.h5") as file:
        assert len(file) == 10
        for video_id in file:
            split, seed, number = video_id.rsplit("-", 2)
            np.testing.assert_array_equal(store[video_id], make_video(split, int(seed), int(number)).features)


def test_every_word_is_in_the_vocabulary(videos: dict[str, list[ShapesVideo]], dataset: Path) -> None:
    vocabulary = (dataset / "vocab.txt").read_text().split("\n")
    assert vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(vocabulary) == len(set(vocabulary))
    words = {word for video in _all(videos) for sentence in video.sentences for word in sentence.text.split()}
    assert words <= set(vocabulary)
    tokenizer = load_tokenizer(dataset / "vocab.txt")
    unknown = vocabulary.index("[UNK]")
    for text in ("Where does the RED square grow?", "an xylophone's zebra, number 42"):
        assert unknown not in tokenizer.encode([text])[0]


@pytest.mark.slow
def test_files_do_not_depend_on_the_number_of_processes(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "again"
    write_dataset(output, seed=3, counts={"train": 4, "val": 2, "test": 2, "test_unseen": 2}, workers=2)
    for name in ("train.json", "test_unseen.json", "vocab.txt", "manifest.json"):
        assert (output / name).read_bytes() == (dataset / name).read_bytes()
    with h5py.File(output / "features.h5") as one, h5py.File(dataset / "features.h5") as other:
        for video_id in one:
            np.testing.assert_array_equal(one[video_id], other[video_id])


def test_command_writes_the_data_set(tmp_path: Path) -> None:
    arguments = ["data", "shapes", "-o", str(tmp_path / "data"), "--train", "1", "--val", "1", "--test", "1"]
    result = CliRunner().invoke(app, [*arguments, "--test-unseen", "0", "--workers", "1", "--json"])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        *("features.h5", "manifest.json", "test.json", "train.json", "val.json", "vocab.txt"),
    ]


def test_command_and_function_have_the_same_defaults() -> None:
    defaults = inspect.signature(shapes_command).parameters
    assert {split: defaults[split].default for split in SPLITS} == DEFAULT_COUNTS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": {"train": 0}}, "counts: expected at least one video, got none"),
        ({"counts": {"dev": 1}}, "counts: expected splits of train, val, test, test_unseen, got 'dev'"),
        ({"counts": {"train": -1}}, "counts: train: expected a number of videos >= 0, got -1"),
        ({"seed": -1}, "seed: expected an integer >= 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_dataset(tmp_path / "data", **arguments)
    assert not list(tmp_path.iterdir())


def test_an_existing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"output: .* exists; name a directory that does not"):
        write_dataset(tmp_path, counts={"train": 1})


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmn_fast.demo.shapes._fill", fail)
    with pytest.raises(InputError, match="No space left on device"):
        write_dataset(tmp_path / "data", counts={"train": 1})
    assert not list(tmp_path.iterdir())


def test_videos_are_refused_without_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"^video: writing videos needs PyAV \(pip install mmn_fast\[video\]\)"):
        write_dataset(tmp_path / "data", counts={"train": 1}, video=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", [("dev", 0, 0), ("train", -1, 0), ("train", 0, -1), ("train", 0.5, 0)])
def test_make_video_refuses_what_it_cannot_make(key: tuple[str, Any, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        make_video(*key)
