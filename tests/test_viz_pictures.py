"""Pictures: maps, timelines and their pixels show the given values at the right places."""

import base64
import re

import numpy as np
import pytest

from mmn_fast.geometry import cells_to_moments, plan_for, proposal_cells
from mmn_fast.presets import PRESETS
from mmn_fast.types import Moment
from mmn_fast.viz import moment_map, report, timeline
from mmn_fast.viz.images import colours, encode_png, sheet, shrink, spread
from mmn_fast.viz.svg import number, ticks
from tests.viz_pages import MOMENTS, SVG, frames, full_map, parse, pixels_of, queries

# Pictures


@pytest.mark.parametrize("side", [1, 2, 16, 128])
def test_moment_map_shows_every_score_in_its_cell(side):
    map_ = full_map(side)
    root = parse(moment_map(map_.scores, map_.cells, side, 12.0, moments=MOMENTS, truth=(2, 5)))
    image = pixels_of(root.find(SVG + "image").get("href"))
    factor = len(image) // side
    assert image.shape == (side * factor, side * factor, 4)
    cells = image[factor // 2 :: factor, factor // 2 :: factor]
    np.testing.assert_array_equal(cells[..., 3] == 255, np.triu(np.ones((side, side), bool)))
    seen = cells[map_.cells[:, 0], map_.cells[:, 1], :3].astype(int)
    assert np.abs(seen - colours(map_.scores.astype(np.float64))).max() <= 1  # one step of rounding


def colour_of(picture, row):
    image = pixels_of(parse(picture).find(SVG + "image").get("href"))
    return image[0, row * len(image) // 4, :3].tolist()


def test_a_colour_means_one_score_in_every_map_and_the_scale_says_which():
    cells = proposal_cells(np.triu(np.ones((4, 4), bool)))
    low, high = np.full(len(cells), 0.2), np.full(len(cells), 0.9)
    low[0] = high[0] = 0.4
    assert colour_of(moment_map(low, cells, 4, 3.0), 0) == colour_of(moment_map(high, cells, 4, 3.0), 0)
    picture = str(moment_map(high, cells, 4, 3.0))
    for words in ("0.00<", "0.25<", "0.50<", "0.75<", "1.00<", "Scores of this map: 0.40 to 0.90"):
        assert words in picture
    own = moment_map(high, cells, 4, 3.0, limits=(0.4, 0.9))
    assert colour_of(own, 0) == colours(np.zeros(1))[0].tolist()
    assert colour_of(own, 1) == colours(np.ones(1))[0].tolist()
    outside = moment_map(np.full(len(cells), 7.0), cells, 4, 3.0)
    assert colour_of(outside, 2) == colours(np.ones(1))[0].tolist()


def test_moment_map_is_faint_where_there_is_no_proposal_and_blank_below_the_diagonal():
    preset = PRESETS["tacos"]
    plan = plan_for(preset)
    root = parse(moment_map(np.linspace(0, 1, plan.num_proposals), plan.cells, preset.num_clips, 60.0))
    image = pixels_of(root.find(SVG + "image").get("href"))
    factor = len(image) // preset.num_clips
    alpha = image[::factor, ::factor, 3]
    np.testing.assert_array_equal(alpha == 255, plan.mask)
    np.testing.assert_array_equal(alpha == 0, np.tril(np.ones_like(plan.mask), -1))


def test_moment_map_marks_a_chosen_cell_and_an_equal_true_span_at_its_centre():
    map_ = full_map(16)
    start, end = cells_to_moments(np.array([[3, 6]]), 32.0, 16)[0].tolist()
    root = parse(moment_map(map_.scores, map_.cells, 16, 32.0, moments=[Moment(start, end, 0.5)], truth=(start, end)))
    frame = root.find(f".//{SVG}rect[@class='mmn-ring']")
    image = root.find(SVG + "image")
    left, top, unit = float(image.get("x")), float(image.get("y")), float(image.get("width")) / 16
    assert float(frame.get("x")) == pytest.approx(left + 6 * unit)
    assert float(frame.get("y")) == pytest.approx(top + 3 * unit)
    diamond = root.find(f".//{SVG}path[@class='mmn-diamond']").get("d")
    x, y = map(float, re.match(r"M([\d.]+) ([\d.]+)", diamond).groups())
    assert (x, y + 6) == pytest.approx((left + 6.5 * unit, top + 3.5 * unit))


def test_moment_map_survives_equal_and_missing_scores():
    cells = proposal_cells(np.eye(4, dtype=bool))
    for scores in (np.full(4, 0.5), np.full(4, np.nan), np.array([0, np.nan, np.inf, 1])):
        parse(moment_map(scores, cells, 4, 3.0))
    parse(moment_map(np.empty(0), np.empty((0, 2), int), 4, 3.0))


def test_timeline_places_spans_by_time_and_prints_score_and_iou():
    root = parse(timeline(MOMENTS, (2.0, 5.0), duration_s=12.0, sentence="a square grows"))
    true, first, *later = root.findall(SVG + "g")
    assert (true.get("class"), first.get("class"), len(later)) == ("mmn-truth", "mmn-first", 2)
    bar = first.find(SVG + "rect")
    assert float(bar.get("x").rstrip("%")) == pytest.approx(100 * 2 / 12, abs=1e-3)
    assert float(bar.get("width").rstrip("%")) == pytest.approx(100 * 3.5 / 12, abs=1e-3)
    words = "".join(first.itertext())
    assert "2.0–5.5 s" in words
    assert "score 0.81" in words
    assert "IoU 0.86" in words  # 3 s of 3.5 s


def test_timeline_takes_queries_without_moments_or_truth():
    words = "".join(parse(timeline(queries(), duration_s=12.0)).itertext())
    assert "no moment found" in words
    assert "nothing is known" in words
    assert words.count("true") == 1  # two true spans share a lane, which leaves no room for words
    parse(timeline([], duration_s=12.0))
    parse(timeline([], (1, 2), duration_s=12.0))


def test_timeline_draws_spans_beyond_the_video_within_it():
    root = parse(timeline([Moment(-5, 50, 1.0), Moment(20, 30, 0.5)], duration_s=10.0))
    for bar in root.iter(SVG + "rect"):
        if bar.get("class") == "mmn-bar":
            x, width = float(bar.get("x").rstrip("%")), float(bar.get("width").rstrip("%"))
            assert x >= 0
            assert x + width <= 100


def test_timeline_heads_with_thumbnails():
    root = parse(timeline(MOMENTS, duration_s=12.0, thumbnails=frames(40)))
    images = root.findall(SVG + "image")
    assert 1 < len(images) <= 14
    assert pixels_of(images[0].get("href")).shape == (6, 8, 3)


@pytest.mark.parametrize("duration_s", [0.04, 0.5, 1, 12, 61.3, 3600, 1e6])
def test_ticks_are_few_and_within_the_video(duration_s):
    times = ticks(duration_s, 12)
    assert times[0] == 0
    assert len(times) <= 13
    assert times == sorted(set(times))
    assert times[-1] <= duration_s * (1 + 1e-9)


def test_numbers_lose_trailing_zeros_only():
    assert [number(value) for value in (3, 2.5, 100, 0.004, -0.001)] == ["3", "2.5", "100", "0", "0"]


def test_two_pictures_on_a_page_do_not_share_names():
    page = str(report([queries(side=side)[0] for side in (4, 8, 16)], 12.0))
    names = re.findall(r' id="([^"]+)"', page)
    assert len(names) == len(set(names))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(names)


# Pixels


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 3), (3, 2, 4)])
def test_png_holds_the_pixels(shape):
    rng = np.random.default_rng(3)
    for image in (rng.integers(0, 256, shape, dtype=np.uint8), np.full(shape, 77, np.uint8)):
        uri = "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()
        np.testing.assert_array_equal(pixels_of(uri), image)


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_sheet_holds_every_frame_where_the_player_looks(count):
    video = frames(count)
    image, columns = sheet(video)
    for position, frame in enumerate(video):
        y, x = position // columns * 6, position % columns * 8
        np.testing.assert_array_equal(image[y : y + 6, x : x + 8], frame)


def test_frames_are_shrunk_and_thinned_evenly():
    video = np.repeat(np.repeat(frames(3, 4, 5), 4, axis=1), 4, axis=2)
    np.testing.assert_array_equal(shrink(video, 5), frames(3, 4, 5))
    assert shrink(video, 20) is video
    assert shrink(frames(1, 1, 1000), 10).shape[1] == 1
    assert spread(10, 4) == [1, 3, 6, 8]
    assert spread(3, 10) == [0, 1, 2]
