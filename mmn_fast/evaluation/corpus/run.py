"""Searches an index for every sentence of a data set and compares with the true video and moment."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mmn_fast.embeddings import TextEmbeddings
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.evaluation.corpus.figures import MOST, CorpusReport, Recall, found_at, right
from mmn_fast.evaluation.corpus.submission import Answer
from mmn_fast.evaluation.datasets import Sample, first_few
from mmn_fast.evaluation.loop import check_counts, notes_of, progress_bar
from mmn_fast.evaluation.notes import Note, cut_sentences, refuse
from mmn_fast.index import Match, MomentIndex
from mmn_fast.tokenizer import without_warnings_of_cuts

_SENTENCES_AT_ONCE = 256  # sentences per scan of the library

logger = logging.getLogger(__name__)


def evaluate_corpus(
    engine: Engine,
    index: MomentIndex,
    samples: Sequence[Sample],
    *,
    per_video: int = MOST,
    limit: int | None = None,
    skip_missing: bool = False,
    strict: bool = False,
    threads: int | None = None,
    progress: bool = False,
    on_answer: Callable[[Answer], object] | None = None,
) -> CorpusReport:
    """Find every sentence's moment in a whole library.

    Args:
        engine: encodes the sentences; its model is the index's.
        index: the library; videos without sentences are there to be confused with.
        samples: sentences and their true moments, see `read_annotations`.
        per_video: most moments of one video among the 100 predictions of a sentence.
        limit: only the first `limit` videos with sentences; the library stays whole.
        skip_missing: pass over sentences whose video is not in the index; the report counts them.
        strict: refuse to pass over videos and to cut sentences.
        threads: CPU threads; None takes the default.
        progress: show a progress bar on stderr.
        on_answer: called with the predictions of every sentence, in their order.

    Returns:
        The report.

    Raises:
        InputError: an argument cannot be used, a sentence has no true moment, a video is not in the index (unless
            `skip_missing`), or `strict` refuses something.
    """
    started = time.perf_counter()
    check_counts(limit=limit, per_video=per_video)
    chosen, notes = _choose(engine, index, samples, limit, skip_missing, strict)
    tasks = {name: Recall() for name in ("VCMR", "SVMR", "VR")}
    with progress_bar(progress, len(chosen)) as advance:
        for block in _blocks(chosen):
            with without_warnings_of_cuts():
                text = engine.encode_text([sentence for sample in block for sentence in sample.sentences])
            answers = iter(_answers(index, block, text, per_video, threads))
            for sample in block:
                for truth in sample.moments_s:
                    answer = next(answers)
                    _judge(tasks, sample.video_id, truth, answer)
                    if on_answer is not None:
                        on_answer(answer)
            advance(len(block))
    return CorpusReport(
        preset=engine.preset.name,
        metrics={name: recall.figures() for name, recall in tasks.items()},
        library=len(index),
        num_videos=len(chosen),
        num_sentences=sum(len(sample.sentences) for sample in chosen),
        per_video=per_video,
        seconds=time.perf_counter() - started,
        notes=notes,
    )


def _choose(
    engine: Engine, index: MomentIndex, samples: Sequence[Sample], limit: int | None, skip_missing: bool, strict: bool
) -> tuple[list[Sample], tuple[Note, ...]]:
    """The samples to judge, and what was left out; what is skipped or cut is logged before the work begins."""
    unknown = [sample.video_id for sample in samples if not all(map(len, sample.moments_s))]
    if unknown:
        raise InputError(
            f"samples: expected a true window for every sentence, got none in {len(unknown)} of {len(samples)} videos:"
            f" {first_few(unknown)}"
        )
    missing = [sample.video_id for sample in samples if sample.video_id not in index]
    if missing and not skip_missing:
        raise InputError(
            f"corpus: {index.path} lacks {len(missing)} of the {len(samples)} videos with sentences:"
            f" {first_few(missing)} (skip_missing leaves them out)"
        )
    notes = []
    if missing:
        why = "they are not in the index"
        notes.append(Note("skipped", "videos", len(missing), len(samples), why, first_few(missing)))
    if strict:
        refuse(notes)
    present = [sample for sample in samples if sample.video_id in index]
    chosen = present[:limit]
    if not chosen:
        raise InputError(f"samples: expected at least one video of the index, got none of {len(samples)}")
    if len(chosen) < len(present):
        beyond = [sample.video_id for sample in present[len(chosen) :]]
        notes.append(Note("limited", "videos", len(beyond), len(present), f"limit {limit}", first_few(beyond)))
    cut = cut_sentences(engine, [sentence for sample in chosen for sentence in sample.sentences])
    if strict:
        refuse(cut)
    for note in notes:
        logger.warning("%s", note)
    for note in cut:
        warnings.warn(str(note), stacklevel=3)
    return chosen, (*notes_of(samples), *notes, *cut)


def _blocks(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Samples with about `_SENTENCES_AT_ONCE` sentences together."""
    block: list[Sample] = []
    for sample in samples:
        block.append(sample)
        if sum(len(one.sentences) for one in block) >= _SENTENCES_AT_ONCE:
            yield block
            block = []
    if block:
        yield block


def _answers(
    index: MomentIndex, block: Sequence[Sample], text: TextEmbeddings, per_video: int, threads: int | None
) -> Iterator[Answer]:
    """The predictions of a block's sentences."""
    moments = index.search(text, MOST, per_video, threads=threads)
    videos = index.rank_videos(text, MOST, threads=threads)
    row = 0
    for sample in block:
        of_video = slice(row, row + len(sample.sentences))
        in_video = index.search(text[of_video], MOST, MOST, videos=[sample.video_id], threads=threads)
        for query_id, sentence, found in zip(sample.query_ids, sample.sentences, in_video, strict=True):
            yield Answer(query_id, sentence, moments[row], found, videos[row])
            row += 1


def _judge(tasks: dict[str, Recall], video_id: str, truth: np.ndarray, answer: Answer) -> None:
    for task, found in (("VCMR", answer.moments), ("SVMR", answer.in_video)):
        for iou, correct in found_at(_spans(found), right([one.video_id for one in found], video_id), truth).items():
            tasks[task].add(f",IoU@{iou:g}", correct)
    tasks["VR"].add("", right([one.video_id for one in answer.videos], video_id))


def _spans(found: Sequence[Match]) -> np.ndarray:
    return np.array([(match.start_s, match.end_s) for match in found], np.float64).reshape(-1, 2)
