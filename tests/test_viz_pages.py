"""Pages are self-contained, harmless whatever the text, small, and always the same bytes."""

import base64
import dataclasses
import re

import numpy as np
import pytest

from mmn_fast.evaluation.notes import Note
from mmn_fast.viz import GroundedQuery, evaluation_report, report, timeline
from tests.viz_pages import (
    EVALUATION,
    MOMENTS,
    NASTY,
    Reader,
    data_of,
    every_page,
    frames,
    full_map,
    parse,
    pixels_of,
    queries,
    result,
)


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


def test_escaped_text_reads_as_it_was_given():
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
    assert np.abs(scores - map_.scores).max() <= 1 / 65534  # one step; rounding alone takes half of it


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


def test_evaluation_page_reports_entries_left_out():
    notes = (
        Note("skipped", "videos", 1, 5, "they have no features", "'e'"),
        Note("left_out", "sentences", 2, 6, "they have no window", "<b>"),
    )
    words = " ".join(Reader(evaluation_report(dataclasses.replace(EVALUATION, notes=notes), [])).texts.values())
    assert "2 of 6 sentences left out: they have no window (first: <b>)" in words
    assert words.count("skipped") == 1


def test_evaluation_page_stays_small_and_counts_omitted_rows():
    results = [result(f"video{n}", n / 3000) for n in range(3000)]
    page = evaluation_report(EVALUATION, results)
    assert len(page.html) < 3000 * 200 + 60_000
    assert len(Reader(page).tags("tr")) < 10  # the browser builds the rows
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
