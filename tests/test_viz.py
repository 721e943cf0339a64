"""The pictures: well-formed, complete in themselves, harmless whatever the text, and the same every time."""

import base64
import dataclasses
import io
import json
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from html.parser import HTMLParser

import h5py
import numpy as np
import pytest

from mmn_fast.errors import InputError
from mmn_fast.evaluation import EvaluationReport, Protocol, QueryResult, Sample, evaluate
from mmn_fast.evaluation.notes import Note
from mmn_fast.geometry import cells_to_moments, plan_for, proposal_cells
from mmn_fast.presets import PRESETS
from mmn_fast.types import Moment, ScoreMaps
from mmn_fast.viz import (
    GroundedQuery,
    ScoreMap,
    evaluation_report,
    grounded,
    moment_map,
    refuse_existing,
    report,
    timeline,
)
from mmn_fast.viz.images import colours, encode_png, sheet, shrink, spread
from mmn_fast.viz.svg import number, ticks
from tests.command import run_here
from tests.golden import cases

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "<script>alert('1')</script> & \"quoted\" --> ]]> \x00\x1b \ud800 </svg> <img src=x onerror=alert(1)>"
MOMENTS = (Moment(2.0, 5.5, 0.81), Moment(0.5, 3.0, 0.4), Moment(6.0, 12.0, 0.1))


def full_map(side, seed=0):
    cells = proposal_cells(np.triu(np.ones((side, side), bool)))
    return ScoreMap(np.random.default_rng(seed).random(len(cells)).astype(np.float32), cells, side)


def queries(sentence="the red square grows", side=16):
    return [
        GroundedQuery(sentence, MOMENTS, (2.0, 5.0), full_map(side)),
        GroundedQuery("nothing is found", (), [(1.0, 2.0), (4.0, 6.0)]),
        GroundedQuery("nothing is known", MOMENTS),
        GroundedQuery("", ()),
    ]


def frames(count=10, height=6, width=8):
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def result(name="v", iou=0.5, score=0.5, **changes):
    values = {
        "video_id": name,
        "query_id": name,
        "sentence": "person opens the door",
        "duration_s": 12.0,
        "moments": (Moment(2.0, 5.0, score),),
        "truth_s": np.array([[2.0, 6.0]], np.float32),
        "iou": iou,
    }
    return QueryResult(**(values | changes))


EVALUATION = EvaluationReport(
    Protocol("mmn", strict=False, nms_iou=0.5),
    "charades-sta",
    {"R@1,IoU@0.5": 0.5, "R@1,IoU@0.7": 0.25, "R@5,IoU@0.5": 0.75, "R@5,IoU@0.7": 0.5, "Best_R1": 0.4, "mIoU": 0.375},
    num_videos=4,
    num_sentences=4,
    num_skipped=1,
    seconds=1.5,
)


class Reader(HTMLParser):
    """Collects the elements of a page, and complains about those that are not closed in order."""

    VOID = frozenset({"meta", "input", "br", "img", "link"})

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self._open = [], {}, []
        self.feed(str(page))
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        where = self._open[-1] if self._open else ""
        self.texts[where] = self.texts.get(where, "") + data

    def tags(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


def data_of(page):
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', str(page), re.DOTALL)
    return json.loads(block[1])


def parse(picture):
    root = ET.fromstring(str(picture))
    assert root.tag == SVG + "svg"
    return root


def pixels_of(uri):
    """Decode one of our own PNG files: 8 bits, unfiltered or differences to the row above."""
    stream = io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))
    assert stream.read(8) == b"\x89PNG\r\n\x1a\n"
    packed, header = b"", ()
    while True:
        length, kind = struct.unpack(">I4s", stream.read(8))
        content = stream.read(length)
        assert struct.unpack(">I", stream.read(4))[0] == zlib.crc32(kind + content)
        if kind == b"IHDR":
            header = struct.unpack(">IIBBBBB", content)
        elif kind == b"IDAT":
            packed += content
        else:
            break
    width, height, channels = header[0], header[1], {2: 3, 6: 4}[header[3]]
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    assert set(lines[:, 0]) <= {0, 2}
    rows = lines[:, 1:].copy()
    for row in range(1, height):
        if lines[row, 0] == 2:
            rows[row] += rows[row - 1]
    return rows.reshape(height, width, channels)


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
    assert words.count("true") == 1  # of two true spans on a lane neither has room for words
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


# Pages


def every_page():
    return [
        report(queries(NASTY), 12.0, title=NASTY, video_id=NASTY, frames=frames(), fps=2.5, notes=[NASTY]),
        report(queries(NASTY), 12.0),
        report([], 12.0),
        report([], 12.0, frames=frames(1), fps=1),
        evaluation_report(EVALUATION, [result(NASTY, sentence=NASTY), result()], title=NASTY, notes=[NASTY]),
        evaluation_report(EVALUATION, []),
    ]


@pytest.mark.parametrize("page", every_page(), ids=lambda page: f"{len(page.html) // 1000} kB")
def test_pages_are_complete_in_themselves(page):
    reader = Reader(page)
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
        assert not any(name.startswith("on") for name in attributes), tag
    code = page.html.replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in code
    assert "https:" not in code
    assert not re.search(r"""(url\(|["'(=])\s*//""", re.sub(r"base64,[A-Za-z0-9+/=]+", "", code))
    assert "@import" not in code
    policy = next(meta for meta in reader.tags("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")


@pytest.mark.parametrize("page", every_page(), ids=lambda page: f"{len(page.html) // 1000} kB")
def test_pages_run_no_script_but_their_own(page):
    reader = Reader(page)
    scripts = reader.tags("script")
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    assert not reader.tags("img")
    assert len(reader.tags("title")) >= 1
    assert "<script>alert" not in page.html
    assert all(character not in page.html for character in "\x00\x1b\ud800")


def test_escaped_text_is_what_was_said():
    said = "a < b & \"c\" > 'd' — é 漢"
    page = report([GroundedQuery(said, MOMENTS)], 12.0, title=said)
    assert Reader(page).texts["h1"] == said
    assert data_of(page)["queries"][0]["sentence"] == said
    assert said in "".join(parse(timeline(MOMENTS, duration_s=9, sentence=said)).itertext())
    parse(timeline(MOMENTS, duration_s=9, sentence=NASTY))


def test_report_table_has_query_predicted_true_iou_and_score():
    reader = Reader(report(queries(), 12.0, frames=frames(), fps=1))
    heads = [attributes for attributes in reader.tags("th") if attributes.get("scope") == "col"]
    assert len(heads) == 6
    seeks = [b for b in reader.tags("button") if "data-seek" in b]
    assert (seeks[0]["data-seek"], seeks[0]["data-end"]) == ("2", "5.5")
    assert len(reader.tags("canvas")) == 1
    assert all(group.get("tabindex") == "0" for group in reader.tags("g") if "data-seek" in group)


def test_report_without_frames_has_nothing_to_seek():
    reader = Reader(report(queries(), 12.0))
    assert not any("data-seek" in attributes for _, attributes in reader.elements)
    assert not reader.tags("canvas")


@pytest.mark.parametrize("side", [1, 5, 128])
def test_report_tells_each_cells_score(side):
    map_ = full_map(side)
    data = data_of(report([GroundedQuery("s", MOMENTS, None, map_)], 12.0))["queries"][0]["map"]
    steps = np.frombuffer(base64.b64decode(data["scores"]), "<u2")
    scores = data["low"] + (data["high"] - data["low"]) * steps / 65534
    assert np.abs(scores - map_.scores).max() <= 1 / 65534  # a step, of which rounding takes half


def test_report_bounds_the_video_it_carries():
    video = data_of(report([], 60.0, frames=frames(500, 40, 600), fps=10))["video"]
    assert len(video["times_s"]) == 240
    assert video["width"] <= 256
    assert pixels_of(video["sheet"]).shape[1] == video["width"] * video["columns"]
    assert video["times_s"] == sorted(video["times_s"])


def test_evaluation_page_lists_the_hardest_first_and_prints_the_protocol():
    results = [result("a", 0.9), result("b", 0.1), result("c", 0.1, score=0.9), result("d", 0.0, moments=())]
    page = evaluation_report(EVALUATION, results)
    assert [row[0] for row in data_of(page)["rows"]] == ["d", "c", "b", "a"]
    words = " ".join(Reader(page).texts.values())
    assert "Protocol mmn: a moment counts where IoU ≥ m; NMS at IoU 0.5" in words
    for figure in ("50.00", "25.00", "75.00", "37.50"):
        assert figure in words


def test_evaluation_page_says_what_its_figures_are_not_of():
    notes = (
        Note("skipped", "videos", 1, 5, "they have no features", "'e'"),
        Note("left_out", "sentences", 2, 6, "they have no window", "<b>"),
    )
    words = " ".join(Reader(evaluation_report(dataclasses.replace(EVALUATION, notes=notes), [])).texts.values())
    assert "2 of 6 sentences left out: they have no window (first: <b>)" in words
    assert words.count("skipped") == 1


def test_evaluation_page_stays_small_and_says_what_it_leaves_out():
    results = [result(f"video{n}", n / 3000) for n in range(3000)]
    page = evaluation_report(EVALUATION, results)
    assert len(page.html) < 3000 * 200 + 60_000
    assert len(Reader(page).tags("tr")) < 10  # rows are built in the browser
    short = evaluation_report(EVALUATION, results, max_rows=100)
    assert len(data_of(short)["rows"]) == 100
    assert "The hardest 100 are listed, 2900 are left out." in short.html


def test_the_same_input_makes_the_same_page():
    first, second = every_page(), every_page()
    assert [page.html for page in first] == [page.html for page in second]


def test_notebooks_show_pictures_and_pages():
    picture = timeline(MOMENTS, duration_s=12.0)
    assert picture._repr_svg_() == picture._repr_html_() == str(picture)
    shown = Reader(report([], 12.0)._repr_html_()).tags("iframe")
    assert shown[0]["srcdoc"] == report([], 12.0).html


# Files


def test_save_refuses_an_existing_file_and_leaves_no_partial_one(tmp_path):
    path = tmp_path / "page.html"
    page, picture = report([], 12.0), timeline([], duration_s=1)
    assert page.save(path).read_text(encoding="utf-8") == page.html
    with pytest.raises(InputError, match="already exists"):
        page.save(path)
    with pytest.raises(InputError, match="--html: .*already exists"):
        refuse_existing(path, "--html")
    report([], 24.0).save(path, overwrite=True)
    assert "24 s" in path.read_text(encoding="utf-8")
    with pytest.raises(InputError, match="no such folder"):
        page.save(tmp_path / "missing" / "page.html")
    with pytest.raises(InputError, match="cannot write"):
        page.save(tmp_path, overwrite=True)
    assert parse(picture.save(tmp_path / "a.svg").read_text(encoding="utf-8")) is not None
    with pytest.raises(InputError, match=r"\.svg or \.png"):
        picture.save(tmp_path / "a.jpg")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.svg", "page.html"]


def test_saving_png_without_cairosvg_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cairosvg", None)
    with pytest.raises(InputError, match="needs the package cairosvg"):
        timeline([], duration_s=1).save(tmp_path / "a.png")


def test_png_is_written_where_cairosvg_is_installed(tmp_path):
    pytest.importorskip("cairosvg", exc_type=ImportError)
    path = timeline(MOMENTS, duration_s=12.0).save(tmp_path / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_viz_imports_neither_torch_nor_a_drawing_library():
    code = (
        "import sys, mmn_fast.viz; print([n for n in ('torch', 'matplotlib', 'PIL', 'cairosvg') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: timeline(MOMENTS, duration_s=0), "duration_s: expected a finite number > 0, got 0"),
        (lambda: timeline(MOMENTS, duration_s=float("nan")), "duration_s"),
        (lambda: timeline(["x"], duration_s=1), r"predictions\[0\]: expected GroundedQuery or Moment, got str"),
        (lambda: timeline(queries(), (1, 2), duration_s=1), "truth, sentence: expected none"),
        (lambda: timeline(MOMENTS, (1, 2, 3), duration_s=1), "truth_s: expected finite seconds"),
        (lambda: timeline(MOMENTS, duration_s=1, thumbnails=np.zeros((2, 3))), "thumbnails: expected RGB uint8"),
        (lambda: moment_map(np.zeros(3), np.zeros((2, 2), int), 4, 1.0), r"cells: expected \[P, 2\]"),
        (lambda: moment_map(np.zeros(1), np.array([[2, 1]]), 4, 1.0), r"0 <= i <= j < 4, got \[2, 1\]"),
        (lambda: moment_map(np.zeros(1), np.array([[0, 4]]), 4, 1.0), "0 <= i <= j < 4"),
        (lambda: moment_map(np.zeros(1), np.array([[0, 0]]), 4, 1.0, limits=(1, 1)), "limits: expected two finite"),
        (lambda: moment_map(np.zeros(1), np.array([[0, 0]]), 4, 1.0, limits=0.5), "limits: expected two finite"),
        (lambda: moment_map(np.zeros((1, 1)), np.array([[0, 0]]), 4, 1.0), r"scores \[P\], got \[1, 1\]"),
        (lambda: moment_map(np.zeros(1), np.array([[0, 0]]), 0, 1.0), "num_clips: expected an integer >= 1"),
        (lambda: report(["x"], 1.0), r"queries\[0\]: expected GroundedQuery"),
        (lambda: report([], 1.0, frames=frames()), "fps: expected a finite number > 0 with frames, got None"),
        (lambda: report([], 1.0, frames=frames() / 255, fps=1), "frames: expected RGB uint8"),
        (lambda: evaluation_report(EVALUATION, [], max_rows=0), "max_rows"),
        (lambda: grounded(["a"], []), "results: expected one entry per sentence, 1, got 0"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()


# With the evaluation and the command line


class _Engine:
    preset = PRESETS["charades-sta"]

    def score_maps(self, batch):
        cells = plan_for(self.preset).cells
        maps = []
        for query in batch:
            scores = np.random.default_rng(len(query.sentences)).random((len(query.sentences), len(cells)), np.float32)
            maps.append(ScoreMaps(scores, scores, scores, cells))
        return maps


def test_evaluate_hands_over_what_its_figures_are_made_of():
    samples = [
        Sample(
            f"v{n}",
            16.0,
            tuple(f"s{s}" for s in range(n)),
            tuple(np.array([[s, s + 3.0]], np.float32) for s in range(n)),
            tuple(range(n)),
        )
        for n in (1, 2, 3)
    ]
    store = {sample.video_id: np.zeros((4, 4096), np.float32) for sample in samples}

    results = []
    with_results = evaluate(_Engine(), samples, store, on_result=results.append)
    without = evaluate(_Engine(), samples, store)
    assert with_results.metrics == without.metrics
    assert [(r.video_id, r.sentence) for r in results] == [(v.video_id, s) for v in samples for s in v.sentences]
    assert np.mean([r.iou for r in results]) == pytest.approx(without.metrics["mIoU"])
    for found in results:
        query = GroundedQuery(found.sentence, found.moments, found.truth_s)
        assert query.iou == pytest.approx(found.iou)
    data_of(evaluation_report(without, results))


def test_ground_and_eval_write_pages(golden_model, golden_files, tmp_path):
    name = "charades_small"
    model, files, preset = golden_model(name), golden_files(name), cases.load(name).preset
    with h5py.File(files / "features.h5") as file:
        video = next(iter(file))
    features = f"{files / 'features.h5'}::{video}" + (f"/{preset.feature_key}" if preset.feature_key else "")
    page = tmp_path / "page.html"

    def run(*arguments):
        return run_here(*arguments, "--model", model, "--backend", "torch")

    ground = ["ground", "--features", features, "--duration", "12", "-q", "a person <b>runs</b>", "--html", page]
    done = run(*ground)
    assert done.returncode == 0, done.stderr
    assert data_of(page.read_text(encoding="utf-8"))["queries"][0]["sentence"] == "a person <b>runs</b>"
    again = run(*ground)
    assert again.returncode == 2
    assert "--html" in again.stderr

    annotations = tmp_path / "annotations.json"
    entry = {"duration": 12.0, "timestamps": [[1.0, 5.0]], "sentences": ["a person runs"]}
    annotations.write_text(json.dumps({video: entry}))
    page = tmp_path / "eval.html"
    done = run("eval", "--annotations", annotations, "--features", files / "features.h5", "--html", page)
    assert done.returncode == 0, done.stderr
    assert len(data_of(page.read_text(encoding="utf-8"))["rows"]) == 1
