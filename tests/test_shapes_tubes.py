"""Tubes in the world of shapes: boxes enclose their shapes, a sentence names one shape, noise is as large as stated."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mmn_fast.demo.rendering import render
from mmn_fast.demo.scenes import COLOURS, SHAPES, Scene, Track
from mmn_fast.demo.shapes import make_video
from mmn_fast.demo.stage import _rgb
from mmn_fast.demo.tracks import BOX_SIDE, track_boxes, track_of
from mmn_fast.demo.tubes import NOTHING, TubesVideo, make_tubes, tube_features
from mmn_fast.errors import InputError
from mmn_fast.features.extractors.pixels import CHANGES, CHANNELS, LOOKS, PixelFeatures
from mmn_fast.tubes import box_ious, check_track, row_span, span_ious
from tests.tolerances import check_close

NUMBERS = range(6)


@pytest.fixture(scope="module")
def videos() -> list[TubesVideo]:
    return [make_tubes("test", 0, number) for number in NUMBERS]


# Boxes


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_are_tight_around_the_pixels_of_a_turning_shape(shape: str) -> None:
    """The boxes are compared with rendered frames of side `BOX_SIDE`; faintly covered pixels count."""
    at = [[0.4, 0.6, np.log(0.1), 0.0, 1, 0, 0], [0.5, 0.4, np.log(0.16), 2.0, 1, 0, 0]]
    scene = Scene(16, (0.1, 0.1, 0.1), (Track(shape, np.array([0.0, 2.0]), np.array(at), ()),), ())
    frames, boxes = track_boxes(scene.tracks[0], 16)
    assert frames.tolist() == list(range(16))
    for frame, box in zip(render(scene, BOX_SIDE), boxes, strict=True):
        rows, columns = np.nonzero(frame[..., 0] > 60)
        check_close(box, [columns.min(), rows.min(), columns.max(), rows.max()], "shape_box_pixels")


def test_boxes_end_at_the_frame_and_frames_follow_each_other(videos: list[TubesVideo]) -> None:
    left_out = 0
    for video in videos:
        for track in video.video.scene.tracks:
            frames, boxes = track_boxes(track, video.video.scene.num_frames)
            left_out += video.video.scene.num_frames - len(frames)
            if len(frames):
                check_track(frames, boxes, "track")
                assert boxes.min() >= 0
                assert boxes.max() <= BOX_SIDE - 1
    assert left_out  # shapes that are outside the frame have no box


def test_a_blinking_shape_keeps_its_boxes() -> None:
    at = np.array([[0.5, 0.5, np.log(0.1), 0.0, 1, 0, 0]] * 2)
    blinking = Track("circle", np.array([0.0, 5.0]), at, ((1.0, 4.0),))
    assert track_boxes(blinking, 40)[0].tolist() == list(range(40))


# Sentences


def test_a_sentence_is_about_one_shape_and_its_true_tube_is_that_shape(videos: list[TubesVideo]) -> None:
    for video in videos:
        scene = video.video.scene
        assert len(video.sentences) == len(video.truths) >= 1
        for sentence, (frames, boxes) in zip(video.sentences, video.truths, strict=True):
            (thing,) = sentence.fact.things
            track = scene.tracks[track_of(scene, sentence.fact)]
            assert track.shape == thing.shape
            rgb = track.at(np.array([sentence.fact.start_s]))[0, 4:]
            shades = [_rgb(thing.colour, np.random.default_rng(draw)) for draw in range(20)]
            others = [_rgb(colour, np.random.default_rng(0)) for colour in COLOURS if colour != thing.colour]
            assert min(np.abs(rgb - shade).max() for shade in shades) < min(np.abs(rgb - o).max() for o in others)
            check_track(frames, boxes, "truth")
            assert sentence.fact.start_s <= (frames[0] + 0.5) / 8
            assert (frames[-1] + 0.5) / 8 < sentence.fact.end_s


def test_only_tubes_of_the_named_shape_are_good_answers(videos: list[TubesVideo]) -> None:
    """The best rows of the best tube are nearly always good enough, and that tube belongs to the named shape."""
    cells = np.array([(i, j) for i in range(16) for j in range(i, 16)], np.int32)
    best = []
    for video in videos:
        for sentence, truth in zip(video.sentences, video.truths, strict=True):
            each = [
                span_ious(truth, (tube.frames, tube.boxes), row_span(len(tube.frames), 16, cells))[0].max()
                for tube in video.tubes
            ]
            best.append(max(each))
            assert video.owners[int(np.argmax(each))] == track_of(video.video.scene, sentence.fact)
    assert np.mean(best) > 0.75
    assert np.mean(np.array(best) > 0.5) > 0.9


# Tubes


def test_tubes_are_the_same_for_the_same_arguments(videos: list[TubesVideo]) -> None:
    again = make_tubes("test", 0, 0)
    for one, other in zip(again.tubes, videos[0].tubes, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.features[0], other.features[0])
    assert again.video.annotation() == make_video("test", 0, 0).annotation()
    with pytest.raises(InputError, match="split: expected one of"):
        make_tubes("dev", 0, 0)


def test_detectors_err_in_every_way_that_they_should(videos: list[TubesVideo]) -> None:
    kinds = dict.fromkeys(("broken", "short", "nothing", "distractor"), 0)
    for video in videos:
        for owner, tube in zip(video.owners, video.tubes, strict=True):
            frames, boxes = check_track(tube.frames, tube.boxes, "tube")
            assert boxes.dtype == np.float32
            kinds["short"] += len(frames) < 16
            kinds["nothing"] += owner == NOTHING
            if owner != NOTHING and len(frames) >= 16:
                at, exact = track_boxes(video.video.scene.tracks[owner], video.video.scene.num_frames)
                assert 0.7 < box_ious(boxes, exact[np.searchsorted(at, frames)].astype(np.float32)).mean() < 0.98
        long = [o for o, tube in zip(video.owners, video.tubes, strict=True) if len(tube.frames) >= 16]
        kinds["broken"] += len(long) > len(set(long))
        kinds["distractor"] += len(set(long)) > 1
    assert min(kinds.values()) > 0, kinds


def test_features_show_the_boxs_shape_alone() -> None:
    """Two shapes move; the features of one shape's tube equal those of a scene with this shape alone."""
    at = [
        [[0.2, y, np.log(0.1), 0.0, *rgb], [0.7, y, np.log(0.1), 0.0, *rgb]]
        for y, rgb in ((0.2, (1, 0, 0)), (0.8, (0, 0, 1)))
    ]
    tracks = tuple(Track("square", np.array([0.0, 5.0]), np.array(numbers), ()) for numbers in at)
    both = Scene(40, (0.1, 0.1, 0.1), tracks, ())
    frames, boxes = track_boxes(tracks[0], 40)
    features = tube_features(render(both), frames, boxes.astype(np.float32))
    alone = PixelFeatures()(render(dataclasses.replace(both, tracks=tracks[:1])))
    np.testing.assert_array_equal(features, alone)
    red = dict(zip(LOOKS + CHANGES, features[5], strict=False))
    assert red["amount"] > 0.3
    assert red["right"] > 0.5
    blue = features[:, : CHANNELS * len(LOOKS + CHANGES)].reshape(len(features), CHANNELS, -1)[:, 8]
    assert not blue.any()


def test_features_have_the_stated_shape(videos: list[TubesVideo]) -> None:
    for video in videos:
        for tube in video.tubes:
            (stream,) = tube.features
            assert stream.shape == ((len(tube.frames) + 1) // 2, PixelFeatures.width)
            assert stream.dtype == np.float32
            assert np.isfinite(stream).all()
