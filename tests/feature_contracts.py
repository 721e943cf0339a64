"""Contracts of features for tests, and feature files that have one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mmn_fast.features.contract import FeatureContract
from tests.training_task import WIDTH

CONTRACT = FeatureContract(
    *("onnx:there/net.onnx", 2.0, 16, 8, WIDTH),
    weights_sha256="ab" * 32,
    resize={"shortest_edge": 128, "filter": "bicubic"},
    crop={"height": 112, "width": 112},
    mean=(0.4, 0.4, 0.4),
    std=(0.2, 0.2, 0.2),
    output="pool",
)
"""A contract as wide as the tiny model's features, with a value in every kind of field."""

OTHER = dataclasses.replace(CONTRACT, fps=4.0, stride=4)
DIFFERENCE = "fps: expected 2.0, got 4.0"
"""What is said of `OTHER` where `CONTRACT` is expected."""


def with_contract(features: Path, path: Path, contract: FeatureContract | None) -> Path:
    """Copy a directory of .npy files to an HDF5 file that has a contract."""
    return write_features(path, {file.stem: np.load(file) for file in sorted(features.glob("*.npy"))}, contract)


def write_features(path: Path, rows: dict[str, Any], contract: FeatureContract | None, **attributes: Any) -> Path:
    """Write features like `mmn-fast features`, with attributes of every video."""
    with h5py.File(path, "w") as file:
        if contract is not None:
            file.attrs["feature_contract"] = contract.to_json()
        for name, array in rows.items():
            file.create_dataset(name, data=array).attrs.update(attributes)
    return path
