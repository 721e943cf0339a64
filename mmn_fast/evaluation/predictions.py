"""Files of predictions in QVHighlights' layout: JSON lines, each written as soon as it is made."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from mmn_fast.arrays import Float32
from mmn_fast.errors import WriteError
from mmn_fast.evaluation.datasets import Sample
from mmn_fast.storage.files import refuse_existing, whole_file


class PredictionsFile:
    """A new file of predictions that appears when its block ends well, or not at all.

    Lines go to the disk at once, so an hour's predictions need no memory. If the disk refuses a line, the work goes on
    without the file: `failure` says why, and the file is removed.

    Args:
        path: the file.
        argument: name of the caller's argument, for messages.

    Attributes:
        failure: why the file could not be written; None while all is well.

    Raises:
        InputError: the file exists, or its folder cannot be written to.
        WriteError: the file cannot be begun.
    """

    def __init__(self, path: str | Path, argument: str = "predictions") -> None:
        self.failure: WriteError | None = None
        self._stack = contextlib.ExitStack()
        self._file = self._stack.enter_context(whole_file(refuse_existing(path, argument), argument))

    def write(self, sample: Sample, moments: Sequence[Float32], top_k: int) -> None:
        """Add a video's sentences.

        Args:
            sample: the video.
            moments: per sentence its ranked moments, float32 [K, 3]: start and end in seconds, score.
            top_k: most moments to write per sentence.
        """
        if self.failure is not None:
            return
        try:
            for query_id, sentence, ranked in zip(sample.query_ids, sample.sentences, moments, strict=True):
                # str() of a float32 is the shortest text that reads back as the same number: 4.14, not
                # 4.139999866485596.
                windows = [[float(str(number)) for number in row] for row in ranked[:top_k]]
                line = {"qid": query_id, "query": sentence, "vid": sample.video_id, "pred_relevant_windows": windows}
                self._file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        except OSError as error:
            self._end(error)

    def __enter__(self) -> PredictionsFile:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self.failure is None:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        try:
            self._stack.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        except WriteError as failure:
            self.failure = failure
