"""The page of an evaluation: its figures, a histogram of IoU, and every sentence, worst failures first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmn_fast.errors import InputError
from mmn_fast.viz.html import Page, build_page, facts_line
from mmn_fast.viz.svg import number, text

if TYPE_CHECKING:
    from mmn_fast.evaluation import EvaluationReport, QueryResult

# A row takes about 200 bytes of data, so the page stays below 5 MB. The browser builds rows only when they are shown.
_MAX_ROWS = 20_000
_MAX_MOMENTS = 5
_MAX_SENTENCE = 600


def evaluation_report(
    evaluation: EvaluationReport,
    results: Sequence[QueryResult],
    *,
    title: str = "Evaluation",
    notes: Sequence[str] = (),
    max_rows: int = _MAX_ROWS,
) -> Page:
    """Make the page of an evaluation.

    Args:
        evaluation: the report that `evaluate` returned: the figures and their protocol.
        results: the results that `evaluate` handed to `on_result`, in any order.
        title: heading of the page.
        notes: further short facts for the line under the title (the model).
        max_rows: most sentences to list, the hardest ones; the page says how many it leaves out.

    Returns:
        The page; `page.save(path)` writes it.

    Raises:
        InputError: `max_rows` < 1.
    """
    if max_rows < 1:
        raise InputError(f"max_rows: expected a number >= 1, got {max_rows!r}")
    # Hardest first: lowest IoU; among equal IoUs the highest score.
    order = sorted(range(len(results)), key=lambda row: (_iou(results[row]), -_score(results[row]), row))
    listed = order[:max_rows]
    ious = np.array([_iou(result) for result in results], np.float64)
    left_out = len(results) - len(listed)
    facts = [
        evaluation.preset,
        f"{evaluation.num_videos} videos",
        f"{evaluation.num_sentences} sentences",
        f"{evaluation.num_skipped} videos skipped (no features)" if evaluation.num_skipped else "",
        f"{evaluation.seconds:.1f} s",
        *(str(note) for note in evaluation.notes if (note.kind, note.what) != ("skipped", "videos")),
    ]
    spread = _histogram(ious) if len(ious) else '<p class="empty">No sentences.</p>'
    limit = f" The hardest {len(listed)} are listed, {left_out} are left out." if left_out else ""
    body = f"""<header><h1>{text(title)}</h1>{facts_line([*facts, *notes])}</header>
<div class="figures">
<section class="panel"><div class="bar"><h2>Metrics</h2></div>{_metrics(evaluation)}</section>
<section class="panel"><div class="bar"><h2>IoU of the best moment</h2></div>{spread}</section>
</div>
<section class="panel">
<div class="bar"><h2>Sentences</h2><p class="key"><span><i class="k-true"></i>true</span>\
<span><i class="k-pred"></i>predicted, later ranks below it</span></p></div>
<div class="bar tools"><div class="tools"><label>Search <input id="search" class="field" type="search" \
placeholder="sentence or video"></label>
<label>Show <select id="only"><option value="all">all</option><option value="failed">IoU below 0.5</option>\
<option value="found">IoU 0.5 and above</option></select></label></div>
<p id="count" class="readout" role="status"></p></div>
<div class="scroll"><table>
<thead><tr id="columns">{_columns()}</tr></thead>
<tbody id="rows"></tbody>
</table></div>
<button id="more" class="more" type="button" hidden>Show more</button>
<noscript><p class="empty">The list of sentences needs JavaScript.</p></noscript>
<p class="protocol">Timelines run over each video's whole length.{limit}</p>
</section>"""
    data = {"rows": [_row(results[row]) for row in listed]}
    return build_page(title, body, data, "dataset.js")


def _iou(result: QueryResult) -> float:
    return float(result.iou)


def _score(result: QueryResult) -> float:
    return result.moments[0].score if result.moments else 0.0


def _row(result: QueryResult) -> list[Any]:
    """One sentence's data: video, sentence, duration, true spans, moments, IoU (the order dataset.js reads)."""
    sentence = result.sentence.strip()
    if len(sentence) > _MAX_SENTENCE:
        sentence = sentence[:_MAX_SENTENCE] + "…"
    return [
        result.video_id,
        sentence,
        round(result.duration_s, 2),
        [[round(float(start), 2), round(float(end), 2)] for start, end in result.truth_s],
        [
            [
                round(moment.start_s, 2),
                round(moment.end_s, 2),
                round(moment.score, 3) if math.isfinite(moment.score) else None,
            ]
            for moment in result.moments[:_MAX_MOMENTS]
        ],
        round(_iou(result), 4),
    ]


def _columns() -> str:
    """Headings of the columns; dataset.js sorts by these words."""
    columns = [("query", "Query", ""), ("predicted", "Predicted", ""), ("true", "True", ""), ("iou", "IoU", "num")]
    columns.append(("score", "Score", "num"))
    cells = [
        f'<th scope="col" class="{kind}" data-key="{key}"><button type="button" class="sort">{name}</button></th>'
        for key, name, kind in columns
    ]
    return "".join(cells[:3]) + '<th scope="col">Timeline</th>' + "".join(cells[3:])


def _metrics(evaluation: EvaluationReport) -> str:
    """A table with R@n by row and IoU@m by column, mIoU below, and the protocol of the figures."""
    pairs = {tuple(name.split(",", 1)): value for name, value in evaluation.metrics.items() if "," in name}
    rows = list(dict.fromkeys(pair[0] for pair in pairs))
    columns = list(dict.fromkeys(pair[1] for pair in pairs))
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in columns)
    lines = []
    for row in rows:
        cells = [pairs.get((row, column)) for column in columns]
        figures = "".join("<td>–</td>" if value is None else f"<td>{100 * value:.2f}</td>" for value in cells)
        lines.append(f'<tr><th scope="row">{text(row)}</th>{figures}</tr>')
    others = {name: value for name, value in evaluation.metrics.items() if "," not in name and "Best_" not in name}
    for name, value in others.items():
        blank = '<td aria-hidden="true"></td>' * max(len(columns) - 1, 0)
        lines.append(f'<tr><th scope="row">{text(name)}</th><td>{100 * value:.2f}</td>{blank}</tr>')
    protocol = evaluation.protocol
    test = "≥" if protocol.test == ">=" else protocol.test
    nms = "" if protocol.nms_iou is None else f"; NMS at IoU {protocol.nms_iou:g}"
    rules = f"Protocol {protocol.name}: a moment counts where IoU {test} m{nms}. In percent."
    return (
        f'<table class="metrics"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
        f'<p class="protocol">{text(rules)}</p>'
    )


def _histogram(ious: np.ndarray) -> str:
    """A histogram of sentences by IoU of their best moment, in steps of 0.05."""
    counts, _ = np.histogram(np.clip(ious, 0, 1), bins=20, range=(0, 1))
    width, high, base = 480, 150, 168
    most, step = int(counts.max()), width / 20
    bars = []
    for place, count in enumerate(counts.tolist()):
        tall = count / most * high
        low = place / 20
        words = f"IoU {low:.2f} to {low + 0.05:.2f}: {count} {'sentence' if count == 1 else 'sentences'}"
        box = f'x="{step * place + 1.5:g}" y="{number(base - tall)}" width="{step - 3:g}" height="{number(tall)}"'
        bars.append(f'<g><title>{words}</title><rect class="h" {box} rx="2"/></g>')
    labels = "".join(
        f'<text class="mmn-tick" x="{width * tick / 5:g}" y="{base + 17}"'
        f' text-anchor="{"start" if tick == 0 else "end" if tick == 5 else "middle"}">{tick / 5:g}</text>'
        for tick in range(6)
    )
    peak = f'<text class="mmn-tick" x="0" y="11">most: {most} of {len(ious)} sentences</text>'
    return (
        f'<svg class="mmn hist" viewBox="0 0 {width} {base + 22}" width="100%" role="img"'
        f' aria-label="Histogram of the best moments\' IoU">{"".join(bars)}'
        f'<line class="base" x1="0" x2="{width}" y1="{base}" y2="{base}"/>{labels}{peak}</svg>'
    )
