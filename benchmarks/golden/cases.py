"""Golden cases: rebuilds official models, their features and files, to compare results with recorded outputs.

The official code computed the recorded outputs in float64, from float32 weights and from pre-clips of its own float32
loader. The outputs are stored as float32. `VOCAB` is the vocabulary of the cases' `token_ids`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.golden import recipe
from mmn_fast.arrays import Float32, Int64
from mmn_fast.presets import PRESETS, Preset, TextEncoderConfig
from mmn_fast.process.once import kept_property
from mmn_fast.tubes import Tube, TubeQuery
from mmn_fast.weights.state import state_shapes

HERE = Path(__file__).parent
VOCAB = HERE / "vocab.txt"

_CONVENTIONS = {
    "charades": "charades-sta",
    "activitynet": "activitynet-captions",
    "tacos": "tacos",
    "hcstvg": "hc-stvg",
}
SMALL = (
    "charades_small",
    "charades_conv_small",
    "activitynet_small",
    "tacos_small",
    "tacos_conv_small",
    "hcstvg_small",
)
FULL = ("charades_full", "activitynet_full", "tacos_full", "hcstvg_full")


@dataclass(frozen=True, eq=False)
class GoldenVideo:
    """One video of a case: features [n_src, D], duration in seconds, its sentences, and the official outputs."""

    video_id: str
    features: Float32
    duration_s: float
    sentences: list[str]
    token_ids: Int64  # [S, L], 0 is padding
    contrastive: Float32  # [S, P]
    iou: Float32  # [S, P]
    fused: Float32 | None  # [S, P]
    moments: list[Float32]  # per sentence [<= 20, 2], seconds, best first

    @property
    def truth(self) -> Float32:
        """The scores that rank proposals, [S, P]; for tubes the product of both branches, which is not recorded."""
        return self.contrastive * self.iou if self.fused is None else self.fused


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """A golden case; `load` finds one by name."""

    name: str
    spec: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]

    @kept_property
    def preset(self) -> Preset:
        """The preset of the case's dataset, with the case's sizes."""
        base, model = PRESETS[_CONVENTIONS[self.name.split("_")[0]]], self.spec["model"]
        return dataclasses.replace(
            base,
            name=self.name,
            num_pre_clips=model["num_pre_clips"],
            num_clips=model["num_clips"],
            feature_streams=base.feature_streams if self.is_tubes else (model["input_size"],),
            hidden_size=model["featpool_hidden"],
            clip_pool_kernel=model["featpool_kernel"],
            pooling=model["pooling"],
            pooling_counts=tuple(model["pooling_counts"]),
            conv_hidden_size=model["conv_hidden"],
            conv_kernel=model["conv_kernel"],
            conv_layers=model["conv_layers"],
            joint_size=model["joint"],
        )

    @property
    def is_tubes(self) -> bool:
        """Whether the case's videos are sets of person tubes (HC-STVG)."""
        return self.name.startswith("hcstvg")

    @property
    def text(self) -> TextEncoderConfig:
        """Sizes of the case's text encoder."""
        bert = self.spec["bert"]
        return TextEncoderConfig(
            num_layers=bert.get("n_layers", 6),
            ffn_width=bert.get("hidden_dim", 3072),
            max_tokens=bert.get("max_position_embeddings", 512),
        )

    def state(self) -> dict[str, Float32]:
        """The model's weights under official keys."""
        seed = self.spec["seed"]
        state = {name: recipe.tensor(name, shape, seed) for name, shape in state_shapes(self.preset, self.text).items()}
        buffers = {name.removeprefix("buffer."): a for name, a in self.arrays.items() if name.startswith("buffer.")}
        return {name: np.asarray(array, np.float32) for name, array in (state | buffers).items()}

    @kept_property
    def videos(self) -> list[GoldenVideo]:
        """The case's videos; in a tube case every tube is a separate video."""
        return self._tube_videos() if self.is_tubes else self._plain_videos()

    def _plain_videos(self) -> list[GoldenVideo]:
        videos = []
        for v, video in enumerate(self.spec["videos"]):
            key = f"video{v}"
            videos.append(
                GoldenVideo(
                    video_id=key,
                    features=recipe.clip_features(
                        video["feature_seed"], video["num_src_clips"], self.preset.input_size
                    ),
                    duration_s=video["duration"],
                    sentences=video["queries"],
                    token_ids=self.arrays[f"{key}.token_ids"],
                    contrastive=self.arrays[f"{key}.contrastive"],
                    iou=self.arrays[f"{key}.iou"],
                    fused=self.arrays[f"{key}.score"],
                    moments=[self.arrays[f"{key}.query{s}.moments"] for s in range(len(video["queries"]))],
                )
            )
        return videos

    @kept_property
    def tube_queries(self) -> list[TubeQuery]:
        """The videos of a tube case as they are asked; `arrays` has their truths as `video<v>.<name>`."""
        queries, seed = [], self.spec["seed"]
        for v, video in enumerate(self.spec["videos"]):
            tracks = recipe.tubes(seed + 100 + v, video["num_tubes"], video["min_len"], video["max_len"])
            tubes = []
            for t, track in enumerate(tracks):
                streams = [
                    recipe.clip_features(seed + 1000 * (stream + 1) + 10 * v + t, len(track), width)
                    for stream, width in enumerate(self.preset.feature_streams)
                ]
                tubes.append(Tube(track[:, 0], track[:, 1:], streams))
            queries.append(TubeQuery(tubes, [video["query"]], f"video{v}"))
        return queries

    def _tube_videos(self) -> list[GoldenVideo]:
        return [
            GoldenVideo(
                video_id=f"{query.video_id}.tube{t}",
                features=np.concatenate(tube.features or [], axis=1),
                duration_s=float(len(tube.frames)),
                sentences=list(query.sentences),
                token_ids=self.arrays[f"{query.video_id}.token_ids"],
                contrastive=self.arrays[f"{query.video_id}.contrastive"][t : t + 1],
                iou=self.arrays[f"{query.video_id}.iou"][t : t + 1],
                fused=None,
                moments=[],
            )
            for query in self.tube_queries
            for t, tube in enumerate(query.tubes)
        ]

    def write_checkpoint(self, path: Path, training_state: bool = False) -> Path:
        """Write an official checkpoint: a dict with "model", as saved from DistributedDataParallel.

        Args:
            path: file to write.
            training_state: put real optimizer and scheduler states and the epoch beside the model.
        """
        import torch

        from mmn_fast.model import build_model

        net = build_model(self.preset, self.text, self.state())
        content: dict[str, Any] = {"model": {f"module.{name}": t for name, t in net.state_dict().items()}}
        if training_state:
            optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=1e-5)
            scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[8, 13])
            content |= {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "epoch": 7}
        torch.save(content, path)
        return path

    def write_features(self, path: Path) -> Path:
        """Write the features in the published HDF5 layout of the case's dataset."""
        import h5py

        key = self.preset.feature_key
        with h5py.File(path, "w") as file:
            for video in self.videos:
                file[f"{video.video_id}/{key}" if key else video.video_id] = video.features
        return path


def load(name: str) -> GoldenCase:
    """Load a golden case by its name in `SMALL` or `FULL`."""
    with np.load(HERE / f"{name}.npz") as arrays:
        return GoldenCase(name, json.loads((HERE / f"{name}.json").read_text()), dict(arrays))


def truths(name: str) -> list[Float32]:
    """Official fused scores [S, P] of every video of a case."""
    return [video.truth for video in load(name).videos]
