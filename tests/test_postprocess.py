"""Chosen proposals become `Moment`s."""

from __future__ import annotations

import pickle

import numpy as np

from mmn_fast.postprocess import to_moments
from mmn_fast.types import Moment


def test_to_moments_lists_each_sentence_and_leaves_out_what_was_not_chosen() -> None:
    moments = np.array([[0, 1], [1, 2.5], [0.1, 7]], np.float32)
    chosen = np.array([[2, 0, -1], [-1, -1, -1], [1, 2, 0]], np.int32)
    scores = np.array([[0.5, 0.25, 0], [0, 0, 0], [3, 2, -1]], np.float32)
    found = to_moments(chosen, scores, moments)
    tenth = float(np.float32(0.1))
    assert found == [
        [Moment(tenth, 7.0, 0.5), Moment(0.0, 1.0, 0.25)],
        [],
        [Moment(1.0, 2.5, 3.0), Moment(tenth, 7.0, 2.0), Moment(0.0, 1.0, -1.0)],
    ]
    assert {type(value) for row in found for m in row for value in (m.start_s, m.end_s, m.score)} == {float}
    assert pickle.loads(pickle.dumps(found)) == found
    assert hash(found[0][0]) == hash(Moment(tenth, 7.0, 0.5))


def test_to_moments_of_no_sentence_and_of_no_proposal() -> None:
    assert to_moments(np.empty((0, 5), np.int32), np.empty((0, 5), np.float32), np.ones((3, 2), np.float32)) == []
    none = to_moments(np.full((2, 5), -1, np.int32), np.zeros((2, 5), np.float32), np.empty((0, 2), np.float32))
    assert none == [[], []]
