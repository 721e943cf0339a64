"""One HTML page: its frame, its data block, and the object that holds it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmn_fast.storage.files import write_whole
from mmn_fast.version import __version__
from mmn_fast.viz.svg import palette_css, picture_css, static, text

# The browser enforces that the page is self-contained: only inline content may load, and the video of `build_page`.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_ALONE = "This page is complete in itself and loads nothing."


@dataclass(frozen=True)
class Page:
    """A self-contained HTML page.

    Attributes:
        html: the whole page.
        title: its title.
    """

    html: str = field(repr=False)
    title: str

    def __str__(self) -> str:
        return self.html

    def _repr_html_(self) -> str:
        """Show the page in a notebook, inside a frame that confines its style and scripts."""
        style = "width:100%;height:900px;border:0"
        return f'<iframe style="{style}" sandbox="allow-scripts" srcdoc="{text(self.html)}"></iframe>'

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the page; it appears whole or not at all.

        Args:
            path: file to write.
            overwrite: replace an existing file instead of refusing.

        Returns:
            The path.

        Raises:
            InputError: the file exists or cannot be written.
        """
        return write_whole(path, self.html.encode("utf-8"), overwrite)


def build_page(title: str, body: str, data: Any, *scripts: str, media: str = "", footer: str = _ALONE) -> Page:
    """Put a page together.

    Args:
        title: plain text.
        body: HTML of the main part, already escaped.
        data: JSON values that the script reads from the element "data".
        scripts: names of files in static/, run in this order as one script.
        media: sources from which a video may load, as in a Content-Security-Policy; "" for none.
        footer: plain text on what the page needs.
    """
    policy = f"{_POLICY}; media-src {media}" if media else _POLICY
    css = palette_css(":root") + picture_css() + static("page.css")
    html = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<style>
{css}</style>
</head>
<body>
<main>
{body}
</main>
<footer>Made by mmn_fast {text(__version__)}. {text(footer)}</footer>
<script type="application/json" id="data">{json_block(data)}</script>
<script>
{"".join(map(static, scripts))}</script>
</body>
</html>
"""
    return Page(html, title)


def json_block(data: Any) -> str:
    """Write JSON for a script element; no string in the JSON can end the element."""
    # ensure_ascii also escapes lone surrogates, which no file can hold.
    packed = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return packed.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def facts_line(facts: list[str]) -> str:
    """Format short facts as one line under the title."""
    return '<p class="facts">' + "".join(f"<span>{text(fact)}</span>" for fact in facts if fact) + "</p>"
