"""Makes the pictures in docs/images: speed.svg from benchmarks/results, demo.png and tubes.png from the demo's pages.

    python -m benchmarks.pictures

The screenshots need chromium (Debian: apt-get install chromium); without it they stay as they are.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mmn_fast
from benchmarks.report import read_lines
from benchmarks.speed import CHART, speed_chart
from mmn_fast.demo.show import demonstrate
from mmn_fast.demo.show_tubes import demonstrate_tubes

SCREENSHOT, TUBES_SCREENSHOT = CHART.with_name("demo.png"), CHART.with_name("tubes.png")
SEED, TUBES_SEED = 0, 3  # of the demo's pages; the first shows frames here: a player loads its video in its own time
_WINDOW, _TUBES_WINDOW = (1200, 1046), (1200, 720)
# Chooses the fourth sentence and goes to the middle of its span, where its boxes are drawn.
_SHOW_BOXES = """<script>
document.querySelectorAll("[data-pick]")[3].click();
const span = document.querySelector("[data-query='3'] .span.pred").dataset, scrub = document.getElementById("scrub");
scrub.value = String((Number(span.seek) + Number(span.end)) / 2);
scrub.dispatchEvent(new Event("input"));
</script>"""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def photograph(page: Path, picture: Path, browser: str, window: tuple[int, int] = _WINDOW) -> None:
    """Photograph the part of a page that a browser shows without scrolling; write it as a PNG file.

    Raises:
        RuntimeError: the browser wrote nothing.
    """
    flags = ["--headless", "--disable-gpu", "--hide-scrollbars", f"--window-size={window[0]},{window[1]}"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium refuses to run as root inside its sandbox
    flags += ["--virtual-time-budget=3000", "--run-all-compositor-stages-before-draw"]  # without, the foot may be blank
    command = [browser, *flags, f"--screenshot={picture}", page.as_uri()]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode or not picture.is_file():
        raise RuntimeError(f"{browser}: no screenshot: {done.stderr.strip()[-500:]}")


def main() -> None:
    """Make the pictures; without a browser make only the chart, and exit with status 1."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    speed_chart(read_lines()).save(CHART, overwrite=True)
    print(CHART)
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        sys.exit("the screenshots were not made: they need chromium (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        for picture, content, window in _pages():
            page, made = Path(folder, picture.name).with_suffix(".html"), Path(folder, picture.name)
            page.write_text(content, encoding="utf-8")
            photograph(page, made, browser, window)
            shutil.copyfile(made, picture)
            print(picture)


def _pages() -> Iterator[tuple[Path, str, tuple[int, int]]]:
    """Yield each screenshot's file, its page and the size of the browser's window."""
    yield SCREENSHOT, str(demonstrate(mmn_fast.load("demo"), SEED).page()), _WINDOW
    tubes = str(demonstrate_tubes(mmn_fast.load("shapes-tubes"), TUBES_SEED).page())
    # The page's policy allows its own scripts alone; the copy that is photographed does without one.
    tubes = re.sub("<meta[^>]*Content-Security-Policy[^>]*>", "", tubes).replace("</body>", _SHOW_BOXES + "</body>")
    yield TUBES_SCREENSHOT, tubes, _TUBES_WINDOW


if __name__ == "__main__":
    main()
