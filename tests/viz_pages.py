"""Pictures and pages for tests, and readers that take them apart."""

import base64
import io
import json
import re
import struct
import xml.etree.ElementTree as ET
import zlib
from html.parser import HTMLParser

import numpy as np

from mmn_fast.evaluation import EvaluationReport, Protocol, QueryResult
from mmn_fast.geometry import proposal_cells
from mmn_fast.tubes import Tube, TubeMoment
from mmn_fast.types import Moment
from mmn_fast.viz import GroundedQuery, ScoreMap, evaluation_report, report
from mmn_fast.viz.film import Film
from mmn_fast.viz.tube_page import GroundedTubes, tube_report

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "<script>alert('1')</script> & \"quoted\" --> ]]> \x00\x1b \ud800 </svg> <img src=x onerror=alert(1)>"
MOMENTS = (Moment(2.0, 5.5, 0.81), Moment(0.5, 3.0, 0.4), Moment(6.0, 12.0, 0.1))


def full_map(side, seed=0):
    cells = proposal_cells(np.triu(np.ones((side, side), bool)))
    return ScoreMap(np.random.default_rng(seed).random(len(cells)).astype(np.float32), cells, side)


def queries(sentence="the red square grows", side=16):
    return [
        GroundedQuery(sentence, MOMENTS, (2.0, 5.0), full_map(side)),
        GroundedQuery("nothing is found", (), [(1.0, 2.0), (4.0, 6.0)]),
        GroundedQuery("nothing is known", MOMENTS),
        GroundedQuery("", ()),
    ]


def frames(count=10, height=6, width=8):
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def moving_tube(first=2, rows=6, step=1.0):
    """A box of 4 by 3 pixels that moves right."""
    left = 1 + step * np.arange(rows)
    return Tube(first + np.arange(rows), np.stack([left, left * 0 + 1, left + 3, left * 0 + 3], axis=1))


def tube_moment(tube, number, start, end, score):
    return TubeMoment(
        number, start, end, int(tube.frames[start]), int(tube.frames[end - 1]), tube.boxes[start:end], score
    )


def tube_page(sentence="the red square grows", **options):
    """Make a page of two tubes and four sentences.

    The second tube has fewer rows than its map has clips; one sentence has no answers.
    """
    tubes = [moving_tube(), moving_tube(0, 3)]
    found = (tube_moment(tubes[1], 1, 0, 2, 0.8), tube_moment(tubes[0], 0, 1, 5, 0.3))
    truth = (tubes[1].frames[1:], tubes[1].boxes[1:])
    elsewhere = (tubes[1].frames, tubes[1].boxes + 100)
    queries = [
        GroundedTubes(sentence, found, truth, full_map(4)),
        GroundedTubes(sentence, found, elsewhere, full_map(4)),
        GroundedTubes("nothing is found", (), truth, full_map(4)),
        GroundedTubes("nothing is known", found[:1]),
    ]
    return tube_report(queries, tubes, frames(), 2.0, **options)


def result(name="v", iou=0.5, score=0.5, **changes):
    values = {
        "video_id": name,
        "query_id": name,
        "sentence": "person opens the door",
        "duration_s": 12.0,
        "moments": (Moment(2.0, 5.0, score),),
        "truth_s": np.array([[2.0, 6.0]], np.float32),
        "iou": iou,
    }
    return QueryResult(**(values | changes))


EVALUATION = EvaluationReport(
    Protocol("mmn", strict=False, nms_iou=0.5),
    "charades-sta",
    {"R@1,IoU@0.5": 0.5, "R@1,IoU@0.7": 0.25, "R@5,IoU@0.5": 0.75, "R@5,IoU@0.7": 0.5, "Best_R1": 0.4, "mIoU": 0.375},
    num_videos=4,
    num_sentences=4,
    num_skipped=1,
    seconds=1.5,
)


class Reader(HTMLParser):
    """Collects the elements of a page; fails if an element is not closed in order."""

    VOID = frozenset({"meta", "input", "br", "img", "link"})

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self._open = [], {}, []
        self.feed(str(page))
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        where = self._open[-1] if self._open else ""
        self.texts[where] = self.texts.get(where, "") + data

    def tags(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


def data_of(page):
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', str(page), re.DOTALL)
    return json.loads(block[1])


def parse(picture):
    root = ET.fromstring(str(picture))
    assert root.tag == SVG + "svg"
    return root


def pixels_of(uri):
    """Decode a PNG file that the package wrote: 8 bits, unfiltered or differences to the row above."""
    stream = io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))
    assert stream.read(8) == b"\x89PNG\r\n\x1a\n"
    packed, header = b"", ()
    while True:
        length, kind = struct.unpack(">I4s", stream.read(8))
        content = stream.read(length)
        assert struct.unpack(">I", stream.read(4))[0] == zlib.crc32(kind + content)
        if kind == b"IHDR":
            header = struct.unpack(">IIBBBBB", content)
        elif kind == b"IDAT":
            packed += content
        else:
            break
    width, height, channels = header[0], header[1], {2: 3, 6: 4}[header[3]]
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    assert set(lines[:, 0]) <= {0, 2}
    rows = lines[:, 1:].copy()
    for row in range(1, height):
        if lines[row, 0] == 2:
            rows[row] += rows[row - 1]
    return rows.reshape(height, width, channels)


def film(link=None, why_not=None):
    """A film of some bytes that are no video."""
    content = None if link or why_not else base64.b64encode(b"no video").decode()
    return Film(f"8 × 6, {NASTY}", "video/mp4", content, link, frames(), why_not)


def film_page(made, **options):
    return report(queries(NASTY), 12.0, film=made, **options)


def every_page():
    return [
        film_page(film(), title=NASTY, video_id=NASTY, notes=[NASTY]),
        film_page(film(link="a%20b/%3Cclip%3E.mp4")),
        film_page(film(why_not=NASTY)),
        report(queries(NASTY), 12.0, title=NASTY, video_id=NASTY, frames=frames(), fps=2.5, notes=[NASTY]),
        report(queries(NASTY), 12.0),
        report([], 12.0),
        tube_page(NASTY, title=NASTY, video_id=NASTY, notes=[NASTY]),
        tube_report([], [], frames(), 2.0),
        report([], 12.0, frames=frames(1), fps=1),
        evaluation_report(EVALUATION, [result(NASTY, sentence=NASTY), result()], title=NASTY, notes=[NASTY]),
        evaluation_report(EVALUATION, []),
    ]
