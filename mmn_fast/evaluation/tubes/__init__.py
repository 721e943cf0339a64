"""Evaluation of spatio-temporal grounding (HC-STVG): overlap of tubes, targets of training, the table, results.json."""

from mmn_fast.evaluation.tubes.figures import PROTOCOLS, TubeFigures, tube_figures
from mmn_fast.evaluation.tubes.targets import target_iou
from mmn_fast.tubes import tube_iou

__all__ = ["PROTOCOLS", "TubeFigures", "target_iou", "tube_figures", "tube_iou"]
