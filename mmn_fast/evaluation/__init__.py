"""Evaluation: reads annotation files, gives recall tables. Uses NumPy alone; the engine runs the model."""

from mmn_fast.evaluation.datasets import Sample, read_annotations
from mmn_fast.evaluation.evaluate import EvaluationReport, QueryResult, evaluate, evaluate_maps
from mmn_fast.evaluation.metrics import PROTOCOLS, Protocol, mean_iou, recall_at
from mmn_fast.evaluation.predict import PredictionReport, predict, read_predictions, score_file

__all__ = [
    "PROTOCOLS",
    "EvaluationReport",
    "PredictionReport",
    "Protocol",
    "QueryResult",
    "Sample",
    "evaluate",
    "evaluate_maps",
    "mean_iou",
    "predict",
    "read_annotations",
    "read_predictions",
    "recall_at",
    "score_file",
]
