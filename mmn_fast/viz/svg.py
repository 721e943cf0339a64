"""SVG: the picture object, its palette for light and dark, and the few elements of the pictures."""

from __future__ import annotations

import html
import math
import re
import zlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mmn_fast.errors import InputError
from mmn_fast.storage.files import write_whole

NAMESPACE = "http://www.w3.org/2000/svg"

# Light and dark value of every colour. Predicted is blue and true is orange, which any colour vision tells apart;
# words and positions say the same.
PALETTE = {
    "page": ("#f4f5f7", "#0f1318"),
    "paper": ("#ffffff", "#181d24"),
    "raised": ("#f0f4fb", "#212a36"),
    "ink": ("#1b2430", "#e7ecf2"),
    "soft": ("#596471", "#9daab8"),
    "line": ("#dce1e7", "#303945"),
    "lane": ("#f1f3f6", "#202730"),
    "hatch": ("#c3cad2", "#46515e"),
    "pred": ("#2563c8", "#6ea8ff"),
    "pred-soft": ("#a9c5f3", "#34568c"),
    "on-pred": ("#ffffff", "#0b1526"),
    "truth": ("#dd7a10", "#ffb04d"),
    "on-truth": ("#1e1200", "#1e1200"),
}

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)


def text(value: object) -> str:
    """Escape text for element content and attribute values, in XML and HTML alike."""
    return html.escape(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", str(value)), quote=True)


def number(value: float, digits: int = 2) -> str:
    """A number without trailing zeros: 3, 2.5, 0.25."""
    rounded = f"{value:.{digits}f}"
    rounded = rounded.rstrip("0").rstrip(".") if "." in rounded else rounded
    return "0" if rounded == "-0" else rounded


def figure(value: float | None) -> str:
    """A score or IoU with two decimals, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def span(start_s: float, end_s: float) -> str:
    """A span of time: "2.1–5.5 s"."""
    return f"{start_s:.1f}–{end_s:.1f} s"


def ticks(duration_s: float, at_most: int, start_s: float = 0.0) -> list[float]:
    """Round times within `duration_s` seconds from the start on, at most `at_most` + 1 of them, at least one."""
    step = next((step for step in _STEPS_S if duration_s / step <= at_most), 0.0)
    if not step:
        step = 3600.0 * 2 ** math.ceil(math.log2(duration_s / 3600 / at_most))
    first, last = math.ceil(start_s / step - 1e-9), math.floor((start_s + duration_s) / step + 1e-9)
    return [round(step * count, 6) for count in range(first, last + 1)] or [round(start_s, 6)]


def palette_css(selector: str) -> str:
    """The palette as CSS variables of a selector, dark if the reader prefers dark."""
    light, dark = ("".join(f"--{name}:{pair[theme]};" for name, pair in PALETTE.items()) for theme in (0, 1))
    return f"{selector}{{{light}}}\n@media (prefers-color-scheme:dark){{{selector}{{{dark}}}}}\n"


def static(name: str) -> str:
    """The text of a file that comes with the package."""
    return resources.files("mmn_fast.viz").joinpath("static", name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Svg:
    """A picture. Notebooks show it; `str(picture)` is a complete SVG document.

    Attributes:
        width: width in pixels.
        height: height in pixels.
        body: the elements inside; "@ID@" stands for a name that is unique to this picture.
        label: description of the picture for screen readers.
        fluid: horizontal positions are percentages, so that the picture fits any width.
    """

    width: int
    height: int
    body: str
    label: str
    fluid: bool = False

    def markup(self) -> str:
        """The picture as an element of a page that has `picture_css()`."""
        width = "100%" if self.fluid else str(self.width)
        box = "" if self.fluid else f' viewBox="0 0 {self.width} {self.height}"'
        return self._element(f'width="{width}" height="{self.height}"{box}', self.body)

    def __str__(self) -> str:
        return self._document(palette_css(".mmn") + static("pictures.css"))

    def _document(self, css: str) -> str:
        paper = '<rect class="mmn-paper" width="100%" height="100%"/>'
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        return self._element(f'xmlns="{NAMESPACE}" {size}', f"<style>{css}</style>{paper}{self.body}")

    def _element(self, attributes: str, body: str) -> str:
        content = f'<svg class="mmn" {attributes} role="img" aria-label="{text(self.label)}">{body}</svg>'
        return content.replace("@ID@", f"mmn-{zlib.crc32(content.encode('utf-8')):08x}")

    def _repr_svg_(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return str(self)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the picture to a file.

        Args:
            path: a name that ends in .svg, or in .png if the package cairosvg is installed.
            overwrite: replace an existing file instead of refusing.

        Returns:
            The path.

        Raises:
            InputError: another ending, no cairosvg for .png, or the file exists or cannot be written.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".svg":
            return write_whole(path, str(self).encode("utf-8"), overwrite)
        if suffix != ".png":
            raise InputError(f"path: expected a name ending in .svg or .png, got {str(path)!r}")
        try:
            import cairosvg
        except (ImportError, OSError) as error:  # OSError: the C library is missing
            raise InputError(
                f"path: writing .png needs the package cairosvg (pip install cairosvg), .svg does not: {error}"
            ) from None
        # cairosvg knows neither CSS variables nor media queries, so the light colours are spelled out.
        css = re.sub(r"var\(--([a-z-]+)\)", lambda match: PALETTE[match[1]][0], static("pictures.css"))
        return write_whole(path, cairosvg.svg2png(self._document(css).encode("utf-8"), scale=2), overwrite)


def picture_css() -> str:
    """The style that inline pictures need once per page, besides the palette."""
    return static("pictures.css")
