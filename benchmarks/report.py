"""Makes the tables of results and the chart from the lines in results/: the latest clean line of each measurement.

    python -m benchmarks.report [--write]

Prints the table of docs/speed.md with each line's age in days, including lines that are not recorded yet. With --write
it records them: it moves the clean lines of results/local to results/ (which is committed), puts the tables between the
markers of docs/speed.md and README.md, and draws docs/images/speed.svg. A line from a changed working tree is not
clean: it is never shown and stays in results/local.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.speed import CHART, Line, is_ours, milliseconds, preset_of, speed_chart, speed_table
from benchmarks.timing import LOCAL, RESULTS, ROOT

BEGIN = "<!-- results: made by `python -m benchmarks.report --write` -->"
END = "<!-- results: end -->"
HEADER = (
    "| processor | preset | stage | what | threads | median ms (p20-p80) | over its peers in the same run | max error"
    " | commit, day |"
)


def read_lines(folder: Path = RESULTS) -> list[Line]:
    """Read every recorded line, by the files' names and then in recorded order."""
    return [json.loads(text) for path in sorted(folder.glob("*.jsonl")) for text in path.read_text().splitlines()]


def record_local(local: Path = LOCAL, folder: Path = RESULTS) -> None:
    """Move the clean lines of `local` to the ends of the equally named files in `folder`."""
    for path in sorted(local.glob("*.jsonl")):
        clean, dirty = [], []
        for text in path.read_text().splitlines(keepends=True):
            (dirty if json.loads(text)["dirty"] else clean).append(text)
        if clean:
            with (folder / path.name).open("a", encoding="utf-8") as file:
                file.writelines(clean)
        path.write_text("".join(dirty)) if dirty else path.unlink()


def latest(lines: Iterable[Line]) -> list[Line]:
    """Pick the latest clean line per processor, ISA, benchmark, preset, stage, sizes, threads and precision."""
    kept: dict[tuple[str, ...], Line] = {}
    for line in sorted(lines, key=lambda line: str(line["time"])):
        if not line["dirty"] and any(is_ours(name) for name in line.get("timings", ())):  # GPU lines have no `timings`
            facts = (line.get(name, "") for name in ("stage", "batch", "sentences", "threads", "precision", "cpu_isa"))
            kept[(line["cpu"], line["benchmark"], preset_of(line), *map(str, facts))] = line
    return [line for _, line in sorted(kept.items())]


def rows(line: Line) -> list[str]:
    """Make the table's rows of one line: one row per precision of mmn_fast, with its peers."""
    timings, found = line["timings"], []
    for name, timing in timings.items():
        if not is_ours(name):
            continue
        # A line with a single precision names ours just "mmn_fast".
        what = name if " " in name or "precision" not in line else f"{name} {line['precision']}"
        what += f", batch {line['batch']}" if "batch" in line else ""
        what += f", {line['sentences']} sentences" if "sentences" in line else ""
        peers = [
            f"{peer} {timings[peer]['median_ms'] / timing['median_ms']:.1f}x" for peer in timings if not is_ours(peer)
        ]
        error = line.get("errors", {}).get(name, line["max_error"])
        cells = [
            f"{line['cpu']}, {line['cpu_isa']}",
            preset_of(line),
            line.get("stage", line["benchmark"].removeprefix("bench_")),
            what,
            str(line["threads"]),
            f"{milliseconds(timing['median_ms'])} ({milliseconds(timing['p20_ms'])}-{milliseconds(timing['p80_ms'])})",
            ", ".join(peers) or "-",
            f"{error:.1e}",
            f"`{line['commit'][:8]}`, {line['time'][:10]}",
        ]
        found.append("| " + " | ".join(cells) + " |")
    return found


def table(lines: Iterable[Line]) -> str:
    """Make the table in Markdown; one sentence if there is no clean line."""
    body = [row for line in latest(lines) for row in rows(line)]
    if not body:
        return "No clean line has been recorded yet."
    return "\n".join([HEADER, "| " + " | ".join(["---"] * HEADER.count(" | ")) + " | --- |", *body])


def section(page: str, body: str, name: str = "page") -> str:
    """Put the body between the markers of a page; return the new page.

    Args:
        page: the page, in Markdown.
        body: Markdown that replaces all text between the markers.
        name: the page's name in the error.

    Raises:
        ValueError: the page does not hold each marker once, in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"{name}: expected {BEGIN} and then {END}, once each")
    return f"{before}{BEGIN}\n\n{body}\n\n{END}{after}"


def pages(lines: Sequence[Line]) -> dict[Path, str]:
    """Make the new text of each page that shows results: path -> text."""
    tables = {ROOT / "README.md": speed_table(lines), ROOT / "docs" / "speed.md": table(lines)}
    return {path: section(path.read_text(encoding="utf-8"), body, path.name) for path, body in tables.items()}


def main() -> None:
    """Print the table with ages; with --write, record new lines and rewrite the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record new lines; write the tables and the chart")
    options = parser.parse_args()
    if options.write:
        record_local()
    lines, now = [*read_lines(), *read_lines(LOCAL)], datetime.now(timezone.utc)
    for line in latest(lines):
        age = now - datetime.fromisoformat(line["time"].replace("Z", "+00:00"))
        print(*(f"{row} {age.days} days old" for row in rows(line)), sep="\n")
    if options.write:
        for path, page in pages(lines).items():
            path.write_text(page, encoding="utf-8")
        speed_chart(lines).save(CHART, overwrite=True)


if __name__ == "__main__":
    main()
