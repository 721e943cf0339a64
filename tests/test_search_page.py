"""The page of a search shows the hits, their frames if the videos are at hand, and plays a hit at a click."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmn_fast import Match
from mmn_fast.errors import InputError
from mmn_fast.viz import library_videos, search_report
from tests.browser import BROWSER, run_in_page
from tests.command import run_here
from tests.videos import number_of, write_video
from tests.viz_pages import NASTY, Reader, data_of

HITS = [[Match("a", 0.5, 1.5, 0.9), Match("b", 1.0, 2.0, 0.4), Match("gone", 0.0, 1.0, 0.3)], []]
LENGTHS = {"a": 2.0, "b": 2.0, "gone": 1.0}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Two videos of two seconds, of which browsers play the first."""
    folder = tmp_path / "my films"
    folder.mkdir()
    write_video(folder / "a.mp4", 20)
    write_video(folder / "b.avi", 20, codec="mpeg4")
    (folder / "gone.mp4").write_bytes(b"no video")
    return {path.stem: path for path in folder.iterdir()}


def test_a_page_without_videos_is_complete_in_itself() -> None:
    page = search_report(["one", NASTY], [[Match(NASTY, 0.5, 1.5, 0.9)], []], {NASTY: 2.0}, notes=[NASTY])
    reader = Reader(page)
    assert "<script>alert" not in page.html
    assert not reader.tags("video")
    assert not reader.tags("button")
    assert "loads nothing" in page.html
    assert "No moment was found." in page.html
    (bar,) = [tag for tag in reader.tags("i") if "style" in tag]
    assert bar["style"] == "left:25%;width:50%"


def test_videos_at_hand_have_frames_and_a_player(files: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "pages" / "page.html"
    videos, troubles = library_videos(files, HITS, page)
    assert [trouble.partition(":")[0] for trouble in troubles] == ["gone"]
    assert videos["a"].link == "../my%20films/a.mp4"
    assert (videos["b"].link, videos["b"].why_not) == (None, "mpeg4, yuv420p, in .avi")
    shots = videos["a"].shots[(0.5, 1.5)]
    assert [number_of(frame) for frame in shots] == [6, 8, 11, 13]  # frames at 0.625, 0.875, 1.125 and 1.375 s
    made = search_report(["one", "two"], HITS, LENGTHS, videos=videos)
    reader = Reader(made)
    (button,) = [tag for tag in reader.tags("button") if "data-film" in tag]
    assert (button["data-film"], button["data-seek"], button["data-end"]) == ("0", "0.5", "1.5")
    assert data_of(made)["films"] == [{"link": "../my%20films/a.mp4", "name": "a"}]
    assert len(reader.tags("img")) == 8
    assert "Not every browser plays this file (mpeg4, yuv420p, in .avi)." in made.html
    assert "media-src 'self' file:" in made.html.replace("&#x27;", "'")
    assert "keep page and videos where they are" in made.html


def test_arguments() -> None:
    with pytest.raises(InputError, match="^results: expected one list per sentence, 1, got 2$"):
        search_report(["one"], HITS, LENGTHS)
    with pytest.raises(InputError, match="^durations_s: expected the length of 'b', got none$"):
        search_report(["one", "two"], HITS, {"a": 2.0, "gone": 1.0})


def test_the_command_writes_it(files: dict[str, Path], tmp_path: Path) -> None:
    files["gone"].unlink()
    folder, index, page = tmp_path / "my films", tmp_path / "it", tmp_path / "page.html"
    assert run_here("index", "create", index, "-m", "demo").returncode == 0
    assert run_here("index", "add", index, folder).returncode == 0
    asked = ("search", index, "-q", "the red square grows", "-k", "2")
    done = run_here(*asked, "--html", page, "--films", folder)
    assert done.returncode == 0
    html = page.read_text()
    assert html.count('<article class="hit">') == 2
    assert html.count('<div class="shots">') == 2
    assert "2 videos in " in html
    done = run_here(*asked, "--html", page)
    assert (done.returncode, done.stderr[:17]) == (2, "mmn-fast: --html:")
    done = run_here(*asked, "--films", folder)
    assert done.stderr == "mmn-fast: --films: expected --html PAGE beside it, the page that shows the films\n"
    done = run_here(*asked, "--html", tmp_path / "new.html", "--films", tmp_path / "none")
    assert done.stderr.startswith("mmn-fast: --films: ")


_CLICK = """new Promise((give) => {
  const film = document.getElementById("film"), found = { hidden: document.getElementById("stage").hidden };
  film.addEventListener("error", () => setTimeout(() =>
    give({ trouble: document.getElementById("trouble").textContent }), 0));
  film.addEventListener("seeked", () => { found.start = film.currentTime; }, { once: true });
  film.addEventListener("pause", () => {
    found.stop = film.currentTime;
    found.shown = !document.getElementById("stage").hidden;
    found.now = document.getElementById("now").textContent;
    give(found);
  }, { once: true });
  document.querySelector("button[data-film]").click();
})"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_click_plays_the_hit(files: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    videos, _ = library_videos(files, HITS, page)
    search_report(["one", "two"], HITS, LENGTHS, videos=videos).save(page)
    found = run_in_page(page, _CLICK, tmp_path / "profile")
    assert found["hidden"]
    assert found["shown"]
    assert found["now"] == "a"
    assert 0.5 <= found["start"] < 0.8
    assert 1.5 <= found["stop"] < 2.1
    files["a"].unlink()
    found = run_in_page(page, _CLICK, tmp_path / "profile")
    assert found == {"trouble": "This browser cannot play a, or does not find it at my%20films/a.mp4."}
