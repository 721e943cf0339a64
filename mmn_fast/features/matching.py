"""Features must be made as those of the model's training: compares contracts, and reads them from files."""

from __future__ import annotations

import logging
from pathlib import Path

from mmn_fast.errors import InputError, named_as
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.store import open_features
from mmn_fast.storage.documents import read_json

logger = logging.getLogger(__name__)

_HDF5 = (".h5", ".hdf5")


def refuse_other_features(
    wanted: FeatureContract | None,
    found: FeatureContract | None,
    where: str,
    any_features: bool | None = None,
    wanted_by: str = "the model",
) -> None:
    """Refuse features that are made in another way than the model's; features or models without a contract pass.

    Args:
        wanted: the contract of the model's features.
        found: the contract of the features at hand.
        where: the argument and the file, for the message.
        any_features: warn instead of refusing; None if the caller has no such argument.
        wanted_by: whose contract `wanted` is, for the message.

    Raises:
        InputError: the contracts differ; the message names the first field that differs, and both values.
    """
    difference = None if wanted is None or found is None else wanted.first_difference(found)
    if difference is None:
        return
    said = f"{where} has features of another contract than {wanted_by}: {difference}"
    if any_features:
        logger.warning("%s; they are used all the same", said)
        return
    hint = "" if any_features is None else " (any_features takes them all the same)"
    raise InputError(f"{said}; extract them again{hint}")


def read_contract(path: str | Path) -> FeatureContract:
    """Read the contract of a JSON file or of an HDF5 file of features.

    Raises:
        InputError: the file cannot be read, or holds no contract.
    """
    path = Path(path)
    if path.suffix.lower() not in _HDF5:
        return FeatureContract.from_dict(read_json(path, f"contract: {path}"), f"contract: {path}")
    with named_as("path", "contract"), open_features(path) as store:
        if store.contract is None:
            raise InputError(
                f"contract: {path} does not say how its features are made; expected a file of mmn-fast features, or a"
                " JSON file"
            )
        return store.contract


def stored_facts(source: str) -> tuple[FeatureContract | None, float | None]:
    """What a file says of one video's features besides the rows: their contract, and the video's length in seconds.

    Args:
        source: "FILE" or "FILE::KEY", as `load_features` takes it. Only HDF5 files can say it.

    Raises:
        InputError: the file is missing or damaged, or its contract cannot be used; the message begins with "features".
    """
    file, _, key = (source, "", "") if Path(source).exists() else source.partition("::")
    if Path(file).suffix.lower() not in _HDF5:
        return None, None
    with named_as("path", "features"), open_features(file) as store:
        video_id = key.strip("/").partition("/")[0]
        if not video_id and len(store) == 1:
            (video_id,) = store.ids()
        return store.contract, store.duration_s(video_id) if video_id in store else None
