"""Evaluation: annotation files in, recall tables out. NumPy only; the engine does the rest."""

from mmn_fast.evaluation.datasets import Sample, read_annotations
from mmn_fast.evaluation.evaluate import EvaluationReport, QueryResult, evaluate, evaluate_maps
from mmn_fast.evaluation.metrics import PROTOCOLS, Protocol, mean_iou, recall_at

__all__ = [
    "PROTOCOLS",
    "EvaluationReport",
    "Protocol",
    "QueryResult",
    "Sample",
    "evaluate",
    "evaluate_maps",
    "mean_iou",
    "read_annotations",
    "recall_at",
]
