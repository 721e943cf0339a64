"""Evaluation of spatio-temporal grounding (HC-STVG): overlap of tubes, targets of training, the table, results.json."""

from mmn_fast.evaluation.tubes.annotations import TubeAnnotations, TubeSample, read_tube_annotations
from mmn_fast.evaluation.tubes.figures import PROTOCOLS, TubeFigures, tube_figures
from mmn_fast.evaluation.tubes.results import TubeAnswer, write_results
from mmn_fast.evaluation.tubes.run import TubeReport, evaluate_tubes, predict_tubes
from mmn_fast.evaluation.tubes.scored import read_results, score_results
from mmn_fast.evaluation.tubes.targets import target_iou
from mmn_fast.tubes import tube_iou

__all__ = [
    "PROTOCOLS",
    "TubeAnnotations",
    "TubeAnswer",
    "TubeFigures",
    "TubeReport",
    "TubeSample",
    "evaluate_tubes",
    "predict_tubes",
    "read_results",
    "read_tube_annotations",
    "score_results",
    "target_iou",
    "tube_figures",
    "tube_iou",
    "write_results",
]
