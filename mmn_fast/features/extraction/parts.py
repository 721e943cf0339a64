"""Finished videos' features on their way into one HDF5 file.

HDF5 cannot be written safely in place: a killed writer leaves a damaged file. So every finished video becomes a file
of its own in the folder `<output>.parts`, written whole, and at the end all of them become the HDF5 file, written whole
too. A killed run loses the videos at hand; the next run goes on with the same folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mmn_fast.arrays import Float32
from mmn_fast.errors import InputError, WriteError, named_as
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.extraction.videos import VideoFile
from mmn_fast.features.extractors.base import ExtractedFeatures
from mmn_fast.features.hdf5 import member, read_attribute
from mmn_fast.features.messages import first_line
from mmn_fast.features.store import open_features
from mmn_fast.storage.files import whole_file, write_whole
from mmn_fast.storage.hdf5_file import new_hdf5
from mmn_fast.storage.unfinished import remove_abandoned

_LOG = logging.getLogger(__name__)
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Source:
    """The video file that features were made of, as far as it is recorded.

    Attributes:
        source: the file's name; None if it is not recorded.
        source_bytes: its size; None if it is not recorded.
    """

    source: str | None
    source_bytes: int | None


@dataclass(frozen=True)
class Finished:
    """What is known of a finished video without its rows.

    Attributes:
        video_id: its id.
        num_rows: n, its rows.
        duration_s: its length in seconds.
        lost: None, or what was unreadable.
        made_of: the video's file.
        contract: how the features were made.
    """

    video_id: str
    num_rows: int
    duration_s: float
    lost: str | None
    made_of: Source
    contract: FeatureContract


def write_part(folder: Path, video: VideoFile, features: ExtractedFeatures, contract: FeatureContract) -> Finished:
    """Write a finished video's features into the folder; they appear whole or not at all, also across power cuts.

    Raises:
        WriteError: the system refuses, such as for a full disk.
    """
    from safetensors.numpy import save

    rows = np.ascontiguousarray(features.rows)
    source = Source(video.path.name, video.path.stat().st_size)
    done = Finished(video.video_id, len(rows), features.duration_s, features.lost, source, contract)
    facts = {**asdict(done), "contract": contract.to_dict()}
    name = hashlib.sha256(video.video_id.encode()).hexdigest()[:32]  # an id may be too long for a longer suffix
    content = save({"rows": rows}, {"facts": json.dumps(facts)})
    write_whole(folder / f"{name}{_SUFFIX}", content, overwrite=True, argument="output", durable=True)
    return done


class Parts:
    """The folder of finished videos of one output file, locked for one run. A context manager.

    Args:
        output: the HDF5 file to write.

    Raises:
        InputError: the output's folder does not exist, another run writes the same output, or the output is a file
            without a feature contract.
        WriteError: the folder cannot be made.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")
        if output.suffix.lower() not in (".h5", ".hdf5") or output.is_dir():
            raise InputError(f"output: expected the name of a file ending in .h5 or .hdf5, got {str(output)!r}")
        if not output.parent.is_dir():
            raise InputError(f"output: cannot write {output}: no such folder {output.parent}")
        self._lock = self._make_and_lock()
        try:
            self.in_output: frozenset[str] = frozenset()
            self._contract = self._contract_of_the_output()
            remove_abandoned(self.folder)
            self.finished = {one.video_id: one for one in map(self._read_facts, self._files()) if one is not None}
        except BaseException:
            self._let_go()
            raise

    def _make_and_lock(self) -> int:
        """Make the folder and lock it; return the lock's descriptor."""
        while True:
            try:
                self.folder.mkdir(exist_ok=True)
                lock = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise WriteError(f"output: cannot write {self.folder}: {error.strerror or error}") from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise InputError(f"output: another run writes {self.output} at this moment") from None
            except OSError:  # a file system without locks
                return lock
            if self.folder.is_dir() and os.path.samestat(os.fstat(lock), os.stat(self.folder)):
                return lock
            os.close(lock)  # a run that ended meanwhile has removed this folder

    def _contract_of_the_output(self) -> FeatureContract | None:
        if not self.output.exists():
            return None
        with named_as("path", "output"), open_features(self.output) as store:
            self.in_output = frozenset(store.ids())
            if store.contract is None:
                raise InputError(
                    f"output: {self.output} exists and has no feature contract, so nothing is added to it; name a new"
                    " file"
                )
            return store.contract

    def begin(self, contract: FeatureContract, videos: Iterable[VideoFile]) -> None:
        """Check that the features that are there were made like those that come, and of the same files.

        Args:
            contract: the contract of the features that come.
            videos: the videos of this run.

        Raises:
            InputError: the output, or what a killed run left, has another contract; or a video that is done was another
                file of the same id.
        """
        left = next((one.contract for one in self.finished.values()), None)
        for there, what in ((self._contract, self.output), (left, self.folder)):
            difference = None if there is None else there.first_difference(contract)
            if difference is not None:
                raise InputError(
                    f"output: {what} has features of another contract: {difference}; name another output file"
                )
        recorded = self._sources_in_the_output(videos)
        recorded |= {video_id: one.made_of for video_id, one in self.finished.items()}
        for video in videos:
            made_of, now = recorded.get(video.video_id), Source(video.path.name, video.path.stat().st_size)
            for name, unit in (("source", ""), ("source_bytes", " bytes")):
                then, is_now = getattr(made_of, name, None), getattr(now, name)
                if then is not None and then != is_now:
                    raise InputError(
                        f"videos: {video.path}: {self.output} has features of another video {video.video_id!r}:"
                        f" {then}{unit} then, {is_now}{unit} now; name another output file"
                    )

    def _sources_in_the_output(self, videos: Iterable[VideoFile]) -> dict[str, Source]:
        import h5py

        wanted = [video.video_id for video in videos if video.video_id in self.in_output]
        if not wanted:
            return {}
        found = {}
        with h5py.File(self.output, "r") as file:
            for video_id in wanted:
                where = f"output: {self.output}"
                node = member(file, video_id, where)
                name, size = (read_attribute(node, attribute, where) for attribute in ("source", "source_bytes"))
                found[video_id] = Source(None if name is None else str(name), None if size is None else int(size))
        return found

    def done(self) -> Collection[str]:
        """The ids of finished videos, in the output and in the folder."""
        return self.in_output | self.finished.keys()

    def assemble(self, contract: FeatureContract) -> None:
        """Write all finished videos into the output, whole or not at all; then remove the folder.

        Raises:
            InputError: the old output is damaged.
            WriteError: the system refuses. Either way the folder and the old output stay as they are.
        """
        if not self.finished:
            return
        with whole_file(self.output, "output", durable=True) as whole, new_hdf5(whole) as (new, check):
            new.attrs["feature_contract"] = contract.to_json()
            if self.in_output:
                self._copy_old(new, check)
            for path in self._files():
                _copy(path, new, contract)
                check()
        self.remove()

    def _copy_old(self, new: Any, check: Callable[[], None]) -> None:
        import h5py

        where = f"output: {self.output}"
        with h5py.File(self.output, "r") as old:
            for video_id in sorted(self.in_output - self.finished.keys()):
                try:
                    old.copy(member(old, video_id, where), new, video_id)
                except InputError:
                    raise
                except Exception as error:  # on damaged bytes a decoder may raise anything
                    check()
                    raise InputError(f"{where}: truncated or damaged ({first_line(error)})") from None
                check()

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.suffix == _SUFFIX and path.name[0] != ".")

    def _read_facts(self, path: Path) -> Finished | None:
        try:
            return _finished_and_rows(path)[0]
        except Exception as error:  # on damaged bytes a decoder may raise anything
            _LOG.warning("%s is damaged and is made again (%s)", path, first_line(error))
            path.unlink(missing_ok=True)
            return None

    def _let_go(self) -> None:
        if self.folder.is_dir() and not self._files():
            self.remove()
        with suppress(OSError):
            os.close(self._lock)

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()


def _finished_and_rows(path: Path, rows: bool = False) -> tuple[Finished, Float32 | None]:
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["facts"])
        made = {"made_of": Source(**facts["made_of"]), "contract": FeatureContract.from_dict(facts["contract"])}
        return Finished(**{**facts, **made}), file.get_tensor("rows") if rows else None


def _copy(path: Path, new: Any, contract: FeatureContract) -> None:
    """Copy a finished video into an open HDF5 file."""
    done, rows = _finished_and_rows(path, rows=True)
    if contract.first_difference(done.contract) is not None:
        return  # a process of a killed run has finished it meanwhile, with other options
    dataset = new.create_dataset(done.video_id, data=rows)
    facts = {"duration_s": done.duration_s, "lost": done.lost, **asdict(done.made_of)}
    for name, value in facts.items():
        if value is not None:
            dataset.attrs[name] = value
