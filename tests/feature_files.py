"""Feature files of every suffix, written for tests."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.torch import save_file


def random_features(n_src: int, width: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_src, width), np.float32)


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write named arrays to a file of the path's suffix; a file without names (.npy) gets the first array."""
    first = next(iter(arrays.values()))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    match path.suffix.lower():
        case ".npy":
            with path.open("wb") as file:
                np.save(file, first)
        case ".npz":
            np.savez_compressed(path, **arrays)
        case ".pt" | ".pth":
            torch.save(tensors, path)
        case ".safetensors":
            save_file(tensors, path)
        case _:
            with h5py.File(path, "w") as hdf5:
                for name, array in arrays.items():
                    hdf5[name] = array
    return path


SUFFIXES = [".h5", ".hdf5", ".npy", ".npz", ".pt", ".pth", ".safetensors"]
FEATURES = random_features(5)
OTHERS = random_features(7, seed=1)
