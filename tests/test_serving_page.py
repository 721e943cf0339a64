"""The service's page in a browser: search, hits, a click that seeks, an upload; with the keyboard and on a phone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")

import mmn_fast
from mmn_fast.media.writing import write_video
from mmn_fast.serving.app import _static
from tests.browser import BROWSER, OpenPage, open_page
from tests.served import serving, shapes

ODD = "<img src=x onerror=alert(1)> & b"


def test_the_page_names_no_other_place() -> None:
    for name in ("serve.html", "serve.css", "serve.js"):
        content = _static(name)
        assert "http:" not in content
        assert "https:" not in content
        assert "//" not in content.replace("// ", "")
        assert "innerHTML" not in content
    assert "style=" not in _static("serve.html")
    assert "onclick" not in _static("serve.html")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A video of two seconds, named as the first video of the index."""
    (tmp_path / "media").mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (16, 48, 64, 3)).astype(np.uint8)
    return write_video(tmp_path / "media" / "first.mp4", frames, 8)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_user_searches_seeks_and_uploads(clip: Path, tmp_path: Path) -> None:
    engine = mmn_fast.load("demo", threads=1)
    with mmn_fast.MomentIndex.create(tmp_path / "index", engine) as index:
        video = mmn_fast.Video.open(clip, engine.extractor())
        index.add([video, mmn_fast.Video(shapes(1).features, shapes(1).duration_s, ODD)])
    options = ("--media", str(clip.parent), "--temporary", str(tmp_path / "uploads"))
    with serving(tmp_path / "index", *options) as (_, address), open_page(address, tmp_path / "profile") as page:
        page.evaluate("addEventListener('securitypolicyviolation', (e) => { window.broken = e.blockedURI; })")
        assert "2 videos" in page.until("document.getElementById('facts').textContent")
        _search_by_keyboard(page)
        _seek(page)
        _upload(page, clip)
        page.resize(390, 800)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        loaded = page.evaluate("performance.getEntriesByType('resource').map((one) => one.name)")
        assert all(name.startswith((address, f"blob:{address}")) for name in loaded), loaded
        assert page.evaluate("window.broken || ''") == ""


def _search_by_keyboard(page: OpenPage) -> None:
    page.evaluate("document.getElementById('query').focus()")
    page.evaluate("document.getElementById('query').value = 'the violet star drifts to the bottom'")
    page.press("Enter", "\r")
    names = page.until("[...document.querySelectorAll('.card strong')].map((one) => one.textContent)")
    assert sorted(names) == sorted(["first", ODD])
    assert page.until("document.querySelectorAll('.card img').length") == 1  # the other has no file
    assert page.evaluate("document.getElementById('state').textContent") == "2 hits among 2 videos, best first."


def _seek(page: OpenPage) -> None:
    page.evaluate("[...document.querySelectorAll('.card')].find((one) => one.querySelector('img')).focus()")
    page.press("Enter", "\r")
    page.until("!document.getElementById('detail').hidden && document.getElementById('film').readyState > 1")
    script = """new Promise((give) => {
      const film = document.getElementById("film"), last = [...document.querySelectorAll(".track li button")].pop();
      film.addEventListener("seeked", () => give([last.textContent, film.currentTime]), { once: true });
      last.click();
    })"""
    words, time_s = page.evaluate(script)
    start_s = float(words.split(": ")[1].split("–")[0])
    assert start_s - 0.06 <= time_s < start_s + 0.5, words
    drawn = "document.getElementById('map').getContext('2d').getImageData(310, 5, 1, 1).data[3]"
    assert page.evaluate(drawn) > 0  # the longest moment's cell
    page.press("Escape")
    assert page.evaluate("document.getElementById('detail').hidden")
    assert page.evaluate("document.activeElement.className") == "card"


def _upload(page: OpenPage, clip: Path) -> None:
    page.evaluate("document.querySelector('details').open = true")
    page.choose_file("#file", clip.rename(clip.with_name("mine.mp4")))
    page.evaluate("document.getElementById('sentences').value = 'a star\\n\\na square'")
    page.evaluate("document.getElementById('keep').checked = true")
    page.evaluate("document.querySelector('#upload button').click()")
    page.until("document.getElementById('state').textContent === 'mine is in the library.'")
    assert page.evaluate("document.querySelectorAll('.track').length") == 2
    assert page.evaluate("document.getElementById('detail-title').textContent") == "mine"
    assert page.until("document.getElementById('film').duration") == pytest.approx(2.0, abs=0.05)
    assert "3 videos" in page.evaluate("document.getElementById('facts').textContent")
