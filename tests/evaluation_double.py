"""An engine whose scores come from a seed, and a few videos to evaluate it on."""

import zlib

import numpy as np

from mmn_fast.evaluation import Sample
from mmn_fast.geometry import proposal_cells, proposal_mask
from mmn_fast.postprocess import fuse_scores
from mmn_fast.presets import PRESETS
from mmn_fast.types import ScoreMaps

CHARADES = PRESETS["charades-sta"]


def cells_of(preset):
    return proposal_cells(proposal_mask(preset.num_clips, preset.pooling_counts))


class FakeEngine:
    """Gives scores that depend on the features and the sentence alone; remembers the requests."""

    preset = CHARADES

    def __init__(self, fail_at=None):
        self.queries = []
        self.batches = []
        self.fail_at = fail_at

    def score_maps(self, batch):
        self.queries += batch
        self.batches.append([query.video.video_id for query in batch])
        if len(self.batches) == self.fail_at:
            raise RuntimeError("the engine broke")
        return [self.maps(query) for query in batch]

    def maps(self, query):
        cells = cells_of(self.preset)
        seeds = [zlib.crc32(f"{query.video.features.sum()} {sentence}".encode()) for sentence in query.sentences]
        noise = np.stack([np.random.RandomState(seed).uniform(0, 1, (2, len(cells))) for seed in seeds])
        contrastive, iou = noise.astype(np.float32).swapaxes(0, 1)
        return ScoreMaps(contrastive, iou, fuse_scores(contrastive, iou, self.preset), cells)


def make_sample(number, sentences=3):
    rng = np.random.RandomState(number)
    starts = rng.uniform(0, 10, sentences)
    windows = tuple(np.array([[start, start + 8]], np.float32) for start in starts)
    text = tuple(f"sentence {s} of é{number}" for s in range(sentences))
    return Sample(f"v{number}", 20.0 + number, text, windows, tuple(f"v{number}#{s}" for s in range(sentences)))


SAMPLES = [make_sample(number, sentences) for number, sentences in enumerate((3, 1, 4, 2, 5))]
FEATURES = {sample.video_id: np.full((4, 8), number, np.float32) for number, sample in enumerate(SAMPLES)}
