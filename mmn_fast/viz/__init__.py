"""Pictures of results: timelines, moment maps and self-contained HTML pages. They need only NumPy.

    >>> queries = [GroundedQuery("the red square grows", moments, truth_s=(2.0, 5.5), map=ScoreMap(scores, cells, 16))]
    >>> timeline(queries, duration_s=12.0)  # shows itself in a notebook
    >>> moment_map(scores, cells, 16, 12.0, moments=moments).save("map.svg")
    >>> report(queries, 12.0, frames=frames, fps=8).save("page.html")

Text is escaped, the same input gives the same bytes, and a page loads nothing from the network.
"""

from mmn_fast.storage.files import refuse_existing
from mmn_fast.viz.dataset_page import evaluation_report
from mmn_fast.viz.film import Film, film_of
from mmn_fast.viz.html import Page
from mmn_fast.viz.pictures import moment_map, timeline
from mmn_fast.viz.search_page import LibraryVideo, library_videos, search_report
from mmn_fast.viz.svg import Svg
from mmn_fast.viz.tube_page import GroundedTubes, tube_report
from mmn_fast.viz.values import GroundedQuery, ScoreMap, grounded
from mmn_fast.viz.video_page import report

__all__ = [
    "Film",
    "GroundedQuery",
    "GroundedTubes",
    "LibraryVideo",
    "Page",
    "ScoreMap",
    "Svg",
    "evaluation_report",
    "film_of",
    "grounded",
    "library_videos",
    "moment_map",
    "refuse_existing",
    "report",
    "search_report",
    "timeline",
    "tube_report",
]
