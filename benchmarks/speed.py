"""Makes the README's chart and table: the time of `encode_video` for one video, beside its peers.

Both show the latest clean line of `bench_cpu` for each processor, instruction set and preset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.timing import ROOT
from mmn_fast.presets import PRESETS
from mmn_fast.viz.svg import Svg, number, text

CHART = ROOT / "docs" / "images" / "speed.svg"
Line = Mapping[str, Any]
Runs = dict[tuple[str, str], dict[str, Line]]

_WIDTH, _NAMES, _VALUES = 720, 178, 86  # pixels: the picture; room for names on the left, for values on the right
_ROW, _BAR = 18, 13


def is_ours(name: str) -> bool:
    """Whether a candidate of a line is mmn_fast; all others are its peers."""
    return name.startswith("mmn_fast")


def preset_of(line: Line) -> str:
    """Name a line's preset; some lines name the full-size golden case instead, such as "charades_full"."""
    name = str(line.get("preset", "any"))  # the text encoder's line has no preset: it holds for all
    start = name.removesuffix("_full")
    return next((preset for preset in PRESETS if preset.replace("-", "").startswith(start.replace("-", ""))), name)


def milliseconds(value: float) -> str:
    """Format a time: three digits, or whole milliseconds."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def single_video(lines: Iterable[Line]) -> Runs:
    """Pick the latest clean line of one video per (processor, instruction set) and preset, in the presets' order."""
    runs: Runs = {}
    for line in sorted(lines, key=lambda line: str(line["time"])):
        wanted = line["benchmark"] == "bench_cpu" and line.get("stage", "encode_video") == "encode_video"
        if wanted and line.get("batch", 1) == 1 and not line["dirty"]:
            runs.setdefault((line["cpu"], line["cpu_isa"]), {})[preset_of(line)] = line
    return {
        machine: {preset: found[preset] for preset in PRESETS if preset in found}
        for machine, found in sorted(runs.items())
    }


def speed_table(lines: Iterable[Line]) -> str:
    """Make the table in Markdown: a row per processor, a column per preset; one sentence if there is no clean line.

    A cell holds each precision's median, and the fastest peer's time in that precision divided by the median.
    """
    runs = single_video(lines)
    if not runs:
        return "No clean line has been recorded yet."
    presets = [preset for preset in PRESETS if any(preset in found for found in runs.values())]
    header = ["processor", *(f"`{preset}`" for preset in presets)]
    rows = [header, ["---"] * len(header)]
    for (cpu, isa), found in runs.items():
        cells = [_cell(found[preset]) if preset in found else "-" for preset in presets]
        rows.append([f"{cpu}, {isa}, {_threads(found)}", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _threads(found: Mapping[str, Line]) -> str:
    return " or ".join(sorted({str(line["threads"]) for line in found.values()})) + " threads"


def _cell(line: Line) -> str:
    parts, timings = [], line["timings"]
    for name in filter(is_ours, timings):
        # A line with a single precision names ours just "mmn_fast".
        precision, median = (
            name.removeprefix("mmn_fast ") if " " in name else line["precision"],
            timings[name]["median_ms"],
        )
        peers = [timings[peer]["median_ms"] for peer in timings if not is_ours(peer) and precision in peer.split()]
        times = f" ({min(peers) / median:.1f}x)" if peers else ""
        parts.append(f"{precision} {milliseconds(median)} ms{times}")
    return "<br>".join(parts)


def speed_chart(lines: Iterable[Line]) -> Svg:
    """Draw bars of milliseconds, a group per preset, for the processor with the most presets.

    Raises:
        ValueError: there is no clean line.
    """
    runs = single_video(lines)
    if not runs:
        raise ValueError("lines: expected a clean line of bench_cpu for one video, found none")
    (cpu, isa), found = max(runs.items(), key=lambda run: sum(len(line["timings"]) for line in run[1].values()))
    days = sorted({line["time"][:10] for line in found.values()})
    title = "Milliseconds to encode one video (shorter is better)"
    machine = f"{cpu}, {isa}, {_threads(found)}; measured {' to '.join(dict.fromkeys((days[0], days[-1])))}"
    parts = [
        f'<text class="mmn-sentence" x="16" y="26">{text(title)}</text>',
        f'<text class="mmn-label-soft" x="16" y="44">{text(machine)}</text>',
    ]
    y = 58
    for preset, line in found.items():
        bars, y = _group(preset, line["timings"], y)
        parts.append(bars)
    return Svg(_WIDTH, y + 8, "".join(parts), f"{title}: {machine}")


def _group(preset: str, timings: Line, y: int) -> tuple[str, int]:
    """Draw one preset's bars from y on, the fastest first; also return the y where they end."""
    medians = sorted((timing["median_ms"], name) for name, timing in timings.items())
    parts = [f'<text class="mmn-label" font-weight="600" x="16" y="{y + 16}">{text(preset)}</text>']
    y += 24
    for median, name in medians:
        long = max(1.5, median / medians[-1][0] * (_WIDTH - _NAMES - _VALUES))
        bar = f'<rect class="mmn-bar" x="{_NAMES}" y="{y}" width="{number(long)}" height="{_BAR}" rx="2"/>'
        weight = ' font-weight="600"' if is_ours(name) else ""
        label = f'<text class="mmn-label"{weight} x="{_NAMES - 8}" y="{y + 11}" text-anchor="end">{text(name)}</text>'
        value = f'<text class="mmn-label"{weight} x="{number(_NAMES + long + 6)}" y="{y + 11}">{median:,.0f} ms</text>'
        parts.append(f'<g class="{"mmn-first" if is_ours(name) else "mmn-later"}">{bar}{label}{value}</g>')
        y += _ROW
    return "".join(parts), y + 6
