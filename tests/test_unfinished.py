"""Files that killed processes left are removed by the next process that makes the same thing; those in use stay."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from mmn_fast.errors import InputError, WriteError
from mmn_fast.storage.files import new_directory, refuse_existing, whole_file, write_whole
from mmn_fast.storage.unfinished import remove_abandoned, unfinished

MAKER = """
import sys, time
from pathlib import Path
from mmn_fast.storage.files import new_directory, whole_file
path = Path(sys.argv[2])
with (new_directory(path, "there") if sys.argv[1] == "directory" else whole_file(path)) as there:
    if sys.argv[1] == "directory":
        (there / "of_it").write_text("half")
    else:
        there.write(b"half")
        there.flush()
    print("writing", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def start() -> Iterator[Callable[[str, Path], subprocess.Popen[str]]]:
    """A function that starts a process which is in the middle of writing."""
    started = []

    def begin(kind: str, path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", MAKER, kind, str(path)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def _names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_leftovers_of_killed_processes_are_removed_but_not_files_of_living_ones(
    kind: str, start: Callable[[str, Path], subprocess.Popen[str]], tmp_path: Path
) -> None:
    path = tmp_path / "it"
    killed = start(kind, path)
    of_killed = _names(tmp_path)
    assert len(of_killed) == 2
    assert all(name.startswith(".it.partial-") for name in of_killed)
    killed.kill()
    killed.wait()
    assert _names(tmp_path) == of_killed
    start(kind, path)
    of_living = _names(tmp_path)
    assert len(of_living) == 2
    assert not set(of_killed) & set(of_living)
    with new_directory(path, "path") if kind == "directory" else whole_file(path):
        assert set(of_living) < set(_names(tmp_path))
    assert _names(tmp_path) == sorted([*of_living, "it"])


def test_another_name_does_not_remove_it(start: Callable[[str, Path], subprocess.Popen[str]], tmp_path: Path) -> None:
    killed = start("file", tmp_path / "it")
    killed.kill()
    killed.wait()
    write_whole(tmp_path / "it2", b"", overwrite=False)
    assert len(_names(tmp_path)) == 3
    refuse_existing(tmp_path / "it")
    assert _names(tmp_path) == ["it2"]


def test_every_name_of_a_folder_at_once(start: Callable[[str, Path], subprocess.Popen[str]], tmp_path: Path) -> None:
    for name, kind in (("a", "file"), ("b", "directory")):
        process = start(kind, tmp_path / name)
        process.kill()
        process.wait()
    start("file", tmp_path / "c")
    (tmp_path / ".d.partial-0").touch()
    remove_abandoned(tmp_path)
    left = _names(tmp_path)
    assert len(left) == 3
    assert all(name.startswith((".c.partial-", ".d.partial-0")) for name in left)
    remove_abandoned(tmp_path / "missing")


def test_a_process_does_not_remove_its_own_unfinished_files(tmp_path: Path) -> None:
    with unfinished(tmp_path / "it") as first, unfinished(tmp_path / "it") as second:
        first.mkdir()
        second.touch()
        remove_abandoned(tmp_path)
        assert first.is_dir()
        assert second.is_file()
    assert _names(tmp_path) == []


def test_a_forked_child_neither_removes_nor_keeps_what_its_parent_writes(tmp_path: Path) -> None:
    """The lock is free once the parent has ended, even if a child of it lives on."""
    code = """
import os, sys, time
from pathlib import Path
from mmn_fast.storage.unfinished import unfinished
try:
    with unfinished(Path(sys.argv[1])) as partial:
        partial.touch()
        child = os.fork()
        if child == 0:
            raise SystemExit(0)
        os.waitpid(child, 0)
        assert partial.exists()
        if os.fork() == 0:
            print(os.getpid(), flush=True)  # from the child, which has closed its copy of the lock by then
            time.sleep(100)
            os._exit(0)
        time.sleep(100)
except AssertionError:
    print("removed by the child", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "it")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        sleeper = int(parent.stdout.readline())
        try:
            remove_abandoned(tmp_path)
            assert len(_names(tmp_path)) == 2
            parent.kill()
            parent.wait()
            remove_abandoned(tmp_path)
            assert _names(tmp_path) == []
        finally:
            os.kill(sleeper, signal.SIGKILL)


def test_nothing_is_concluded_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with unfinished(tmp_path / "it") as partial:
        partial.touch()
        assert _names(tmp_path) == [partial.name]
    (tmp_path / ".it.partial-0123456789ab").touch()
    (tmp_path / ".it.partial-0123456789ab.lock").touch()
    remove_abandoned(tmp_path)
    assert len(_names(tmp_path)) == 2


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / ".it.partial-0123456789ab").symlink_to(tmp_path / "precious")
    (tmp_path / ".it.partial-0123456789ab.lock").touch()
    (tmp_path / ".it.partial-ba9876543210.lock").symlink_to(tmp_path / "precious" / "file")
    remove_abandoned(tmp_path)
    assert _names(tmp_path) == [".it.partial-ba9876543210.lock", "precious"]
    assert _names(tmp_path / "precious") == ["file"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "*[a]?", "a\nb"])
def test_any_name_will_do(name: str, start: Callable[[str, Path], subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start("file", tmp_path / name)
    process.kill()
    process.wait()
    write_whole(tmp_path / name, b"whole", overwrite=False)
    assert _names(tmp_path) == [name]


def _with_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=np.ones(10_000))


LIBRARIES: list[Callable[[Path], object]] = [
    _with_hdf5,
    lambda path: np.save(path, np.ones(10_000)),
    lambda path: save_file({"a": np.ones(10_000)}, path),
]


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "it"
    write_whole(path, b"old", overwrite=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(WriteError, match=r"^--there: cannot write .*/it: File too large$"):
            write_whole(path, b"new" * 10_000, overwrite=True, argument="--there")
        fails = pytest.raises(WriteError, match=r"^--there: .*/them: (File too large|not all of it could be written)")
        with fails, new_directory(tmp_path / "them", "--there") as partial:
            (partial / "file").write_bytes(b"new" * 10_000)
        for write in LIBRARIES:
            with fails, new_directory(tmp_path / "them", "--there") as partial:
                write(partial / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["it"]


def test_devices_and_links_are_written_through(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="^path: cannot write /dev/full: No space left on device$"):
        write_whole("/dev/full", b"new", overwrite=True)
    write_whole("/dev/null", b"new", overwrite=True)
    assert not Path("/dev/null").is_file()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "link", b"new", overwrite=True, durable=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # patched, because root may write anywhere
    with pytest.raises(InputError, match="^--html: cannot write .*/it: the folder .* is read-only$"):
        refuse_existing(tmp_path / "it", "--html")
