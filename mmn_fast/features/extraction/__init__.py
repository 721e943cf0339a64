"""Features of many video files: which videos, several processes, and a file that is never damaged."""

from mmn_fast.features.extraction.run import ExtractionReport, extract_features

__all__ = ["ExtractionReport", "extract_features"]
