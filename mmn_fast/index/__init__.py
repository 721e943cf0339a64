"""A library of videos on disk, encoded once and searched by sentences: the best moments of all of its videos."""

from mmn_fast.index.library import MomentIndex
from mmn_fast.index.search import Match, RankedVideo

__all__ = ["Match", "MomentIndex", "RankedVideo"]
