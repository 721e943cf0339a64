"""Makes the README's pictures in docs/images: speed.svg from benchmarks/results, demo.png from the demo's page.

    python -m benchmarks.pictures

The screenshot needs chromium (Debian: apt-get install chromium); without it demo.png stays as it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import mmn_fast
from benchmarks.report import read_lines
from benchmarks.speed import CHART, speed_chart
from mmn_fast.demo.show import demonstrate

SCREENSHOT = CHART.with_name("demo.png")
SEED = 0  # of the demo's page; `mmn-fast demo --seed 0` makes the same page
_WINDOW = (1200, 1046)
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def photograph(page: Path, picture: Path, browser: str) -> None:
    """Photograph the part of a page that a browser shows without scrolling; write it as a PNG file.

    Raises:
        RuntimeError: the browser wrote nothing.
    """
    flags = ["--headless", "--disable-gpu", "--hide-scrollbars", f"--window-size={_WINDOW[0]},{_WINDOW[1]}"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium refuses to run as root inside its sandbox
    flags += ["--virtual-time-budget=3000", "--run-all-compositor-stages-before-draw"]  # without, the foot may be blank
    command = [browser, *flags, f"--screenshot={picture}", page.as_uri()]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode or not picture.is_file():
        raise RuntimeError(f"{browser}: no screenshot: {done.stderr.strip()[-500:]}")


def main() -> None:
    """Make both pictures; without a browser make only the chart, and exit with status 1."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    speed_chart(read_lines()).save(CHART, overwrite=True)
    print(CHART)
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        sys.exit(f"{SCREENSHOT}: not made, the screenshot needs chromium (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder, "demo.html"), Path(folder, SCREENSHOT.name)
        demonstrate(mmn_fast.load("demo"), SEED).page().save(page)
        photograph(page, picture, browser)
        shutil.copyfile(picture, SCREENSHOT)
    print(SCREENSHOT)


if __name__ == "__main__":
    main()
