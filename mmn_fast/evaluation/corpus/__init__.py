"""Retrieval from a whole library: moments in all videos, moments in the right video, videos; TVR's definitions."""

from mmn_fast.evaluation.corpus.figures import CorpusReport
from mmn_fast.evaluation.corpus.run import evaluate_corpus
from mmn_fast.evaluation.corpus.submission import Answer, write_submission

__all__ = ["Answer", "CorpusReport", "evaluate_corpus", "write_submission"]
