"""The page of a video file plays the file itself, if browsers can; a click on a span plays the span."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mmn_fast.errors import InputError
from mmn_fast.media.writing import write_video
from mmn_fast.types import Moment
from mmn_fast.viz import Film, GroundedQuery, film_of, report
from mmn_fast.viz.film import link_note
from tests.browser import BROWSER, run_in_page
from tests.viz_pages import Reader, data_of, film, film_page, pixels_of

SECONDS, FPS = 3.0, 8


def _frames() -> np.ndarray:
    """A video that grows brighter, uint8 [24, 48, 64, 3]."""
    return np.repeat(np.arange(40, 40 + 8 * 24, 8, dtype=np.uint8), 48 * 64 * 3).reshape(24, 48, 64, 3)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "a clip #1.mp4", _frames(), FPS)


def _encoded(path: Path, codec: str, pixels: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pixels
        for frame in _frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def _page(made: Film) -> Any:
    queries = [GroundedQuery("it grows brighter", [Moment(1.0, 1.6, 0.5)])]
    return report(queries, SECONDS, film=made)


def test_a_small_video_is_in_the_page(clip: Path, tmp_path: Path) -> None:
    made = film_of(clip, SECONDS, tmp_path / "page.html")
    page = _page(made)
    data, reader = data_of(page), Reader(page)
    assert base64.b64decode(data["film"]["content"]) == clip.read_bytes()
    assert (data["film"]["type"], data["film"]["link"], data["video"]) == ("video/mp4", None, None)
    (policy,) = [tag["content"] for tag in reader.tags("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy.endswith("; media-src blob:")
    (video,) = reader.tags("video")
    assert "src" not in video  # the script makes a blob of the page's text
    assert not reader.tags("canvas")
    assert "holds the video, is complete in itself" in page.html
    assert "64 × 48, h264, 8 frames per second" in page.html
    assert len(reader.tags("image")) > 3  # frames stand above the timelines
    brightness = made.frames.mean(axis=(1, 2, 3))
    assert (np.diff(brightness) > 0).all()
    assert abs(brightness[0] - 40) < 10


def test_a_large_video_is_linked_and_the_page_and_the_command_say_so(clip: Path, tmp_path: Path) -> None:
    page = clip.parent.parent / "pages" / "page.html"
    made = film_of(clip, SECONDS, page, limit=100)
    assert made.link == f"../{clip.parent.name}/a%20clip%20%231.mp4"
    html = _page(made).html
    assert made.content is None
    assert "media-src 'self' file:" in html.replace("&#x27;", "'")
    assert f"This page plays {made.link}: keep both where they are, or move them together." in html
    assert re.search(
        r"page.html plays .*a clip #1.mp4 from its own file, .* holds at most 16.8 MB", link_note(clip, page)
    )
    assert film_of(clip, SECONDS, None, limit=100).link is None  # without a page there is nowhere to link from


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "said"),
    [
        ("old.avi", "mpeg4", "yuv420p", "mpeg4, yuv420p, in .avi"),
        ("film.mp4", "mpeg4", "yuv420p", "mpeg4, yuv420p, in MP4"),
        ("sharp.mp4", "libx264", "yuv444p", "h264, yuv444p, in MP4"),
        ("film.mkv", "libx264", "yuv420p", "h264, yuv420p, in WebM or Matroska"),
    ],
)
def test_a_video_that_browsers_do_not_play_is_shown_by_its_frames(
    name: str, codec: str, pixels: str, said: str, tmp_path: Path
) -> None:
    made = film_of(_encoded(tmp_path / name, codec, pixels), SECONDS, tmp_path / "page.html")
    page = _page(made)
    reader = Reader(page)
    assert not reader.tags("video")
    assert len(reader.tags("canvas")) == 1
    assert f"Not every browser plays this file ({said}): the page shows {len(made.frames)} frames of it." in page.html
    assert pixels_of(data_of(page)["video"]["sheet"]).shape[2] == 3
    assert len(made.frames) == len(data_of(page)["video"]["times_s"]) == SECONDS * FPS
    assert "loads nothing" in page.html


def test_what_the_page_says_is_escaped() -> None:
    for made in (film(), film(link="x"), film(why_not="<script>alert(1)</script>")):
        assert "<script>alert" not in film_page(made).html


def test_a_file_that_is_no_video_is_refused(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match=r"text\.mp4: expected a video file"):
        film_of(tmp_path / "text.mp4", 1.0)
    with pytest.raises(InputError, match=r"duration_s: expected the length of .*clip #1\.mp4, 3 s, got 999"):
        film_of(clip, 999.0)


_CLICK = """new Promise((give) => {
  const film = document.getElementById("film"), trouble = document.getElementById("trouble"), found = {};
  const failed = () => setTimeout(() => give({ trouble: trouble.textContent }), 0);
  function click() {
    found.duration = film.duration;
    film.addEventListener("seeked", () => {
      found.start = film.currentTime;
      found.head = document.getElementById("head").style.left;
      found.now = document.getElementById("now").textContent;
    }, { once: true });
    film.addEventListener("pause", () => { found.stop = film.currentTime; give(found); }, { once: true });
    document.querySelector("SELECTOR").dispatchEvent(new MouseEvent("click", { bubbles: true }));
  }
  film.addEventListener("error", failed);
  film.addEventListener("loadeddata", click, { once: true });
  if (film.error) failed();
  else if (film.readyState > 1) click();
})"""


def _after_a_click(page: Path, selector: str) -> Any:
    """Open a page, click on an element when the video is there, and return what the page then does."""
    return run_in_page(page, _CLICK.replace("SELECTOR", selector), page.parent / "profile")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize("limit", [2**20, 0], ids=["in the page", "linked"])
def test_a_click_on_a_span_plays_the_span(limit: int, clip: Path, tmp_path: Path) -> None:
    place = tmp_path / "pages" / "page.html"
    place.parent.mkdir()
    copy = Path(shutil.copyfile(clip, tmp_path / clip.name))
    _page(film_of(copy, SECONDS, place, limit)).save(place)
    found = _after_a_click(place, "svg [data-seek]" if limit else "button[data-seek]")
    assert found["duration"] == pytest.approx(SECONDS, abs=0.01)
    assert 1.0 <= found["start"] < 1.3
    assert found["now"] == "it grows brighter"
    assert 33 <= float(found["head"].rstrip("%")) < 45
    assert 1.6 <= found["stop"] < 2.3  # a page that draws no frames hears the time four times a second


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_page_whose_video_has_gone_says_so(clip: Path, tmp_path: Path) -> None:
    place = tmp_path / "page.html"
    copy = Path(shutil.copyfile(clip, tmp_path / "gone.mp4"))
    _page(film_of(copy, SECONDS, place, 0)).save(place)
    copy.unlink()
    trouble = (
        "This browser cannot play the video (64 × 48, h264, 8 frames per second), or does not find it at gone.mp4."
    )
    assert _after_a_click(place, "button[data-seek]") == {"trouble": trouble}
