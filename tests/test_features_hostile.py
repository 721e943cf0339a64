"""Feature files that point to other files or grow when read: only the named file is read, within a memory limit."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mmn_fast.errors import InputError
from mmn_fast.features import load_features, open_features
from mmn_fast.features.limits import MAX_BYTES

ROWS = np.arange(24, dtype=np.float32).reshape(3, 8)
MANY = (MAX_BYTES // 32 + 1, 8)  # shape of a float32 array just over the limit


def refused(path: Path, key: str, message: str) -> None:
    """Check that both ways to a video refuse it with the message: by file and key, and by store and id."""
    with pytest.raises(InputError, match=message):
        load_features(path, key)
    with open_features(path, "c3d_features") as store, pytest.raises(InputError, match=message):
        store[key]


# HDF5 files that point to other files


@pytest.fixture
def other(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["v"] = ROWS
    return tmp_path / "other.h5"


@pytest.mark.parametrize("way", ["itself", "in a group", "through a soft link", "below a soft link", "the only one"])
def test_an_external_link_is_refused_and_its_file_named(tmp_path: Path, other: Path, way: str) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        if way == "itself":
            file["v"] = h5py.ExternalLink(other, "/v")
        elif way == "in a group":
            file["v/c3d_features"] = h5py.ExternalLink(other, "/v")
        elif way == "the only one":
            file["v/whatever"] = h5py.ExternalLink(other, "/v")
        elif way == "through a soft link":
            file["v"] = h5py.SoftLink("/there")
            file["there"] = h5py.ExternalLink(other, "/v")
        else:
            file["v"] = h5py.SoftLink("there/v")
            file["there"] = h5py.ExternalLink(other, "/")
    refused(path, "v", r"a\.h5::.*: is a link into another file, '.*other\.h5', which is not read; name that file$")


def test_the_file_behind_an_external_link_is_not_even_opened(tmp_path: Path) -> None:
    """The other file is a pipe without a writer: opening it would hang."""
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["v"] = h5py.ExternalLink(tmp_path / "pipe", "/v")
        file["group/c3d_features"] = h5py.ExternalLink(tmp_path / "pipe", "/v")
    code = (
        "import sys; from mmn_fast.features import load_features, open_features\n"
        "from mmn_fast.errors import InputError\n"
        "store = open_features(sys.argv[1], 'c3d_features')\n"
        "for read in (lambda v: store[v], lambda v: load_features(sys.argv[1], v)):\n"
        "    for vid in ('v', 'group', 'w'):\n"
        "        try: read(vid)\n"
        "        except InputError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.h5"], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.count("is a link into another file") == 4
    assert run.stdout.count("\n") == 6


def test_external_storage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("v", (2, 8), "u1", external=[("/etc/passwd", 0, 16)])
    refused(path, "v", r"a\.h5::v: keeps its values in another file, '/etc/passwd', which is not read$")


@pytest.mark.parametrize("source", ["other.h5", "missing.h5", "."])
def test_virtual_datasets_are_refused(tmp_path: Path, other: Path, source: str) -> None:
    path = tmp_path / "a.h5"
    layout = h5py.VirtualLayout((3, 8), "f4")
    layout[:] = h5py.VirtualSource(source, "real", (3, 8))
    with h5py.File(path, "w") as file:
        file["real"] = ROWS
        file.create_virtual_dataset("v", layout)
    refused(path, "v", r"a\.h5::v: is a virtual dataset, made of parts of others, which are not read; write a copy$")


def test_soft_links_within_the_file_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data/c3d_features"] = ROWS
        file["absolute"] = h5py.SoftLink("/data")
        file["relative"] = h5py.SoftLink("./absolute/c3d_features")
    for key in ("absolute", "relative", "absolute/c3d_features", "/./relative"):
        np.testing.assert_array_equal(load_features(path, key), ROWS)
    with open_features(path, "c3d_features") as store:
        np.testing.assert_array_equal(store["absolute"], ROWS)
        np.testing.assert_array_equal(store["relative"], ROWS)


def test_links_in_a_circle_end_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["soft"] = h5py.SoftLink("/circle")
        file["circle"] = h5py.SoftLink("/soft")
        hard = file.create_group("hard")
        hard["again"] = hard
        for step in range(31):  # a chain of 2 ** 31 links without a circle
            file[f"l{step}"] = h5py.SoftLink(f"/l{step + 1}/l{step + 1}")
        file["l31"] = h5py.SoftLink("/")
        level = file.create_group("wide")
        for _ in range(60):  # 2 ** 60 paths lead to the innermost group
            below = level.create_group("a")
            level["b"] = below
            level = below
    refused(path, "soft", r"a\.h5.*more than 32 links one after another$")
    refused(path, "l0", r"a\.h5.*more than 32 links one after another$")
    refused(path, "hard", r"a\.h5::hard: expected one array, .* got 1 key \('again'\);")
    refused(path, "wide", r"a\.h5::wide: expected one array, .* got 2 keys \('a', 'b'\);")


def test_values_other_than_arrays_of_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["text"] = np.array(["a", "b"], dtype=h5py.string_dtype())
        file["empty"] = h5py.Empty("f4")
        file["type"] = np.dtype("f4")
    refused(path, "text", r"a\.h5::text: expected a float array, got values of varying length")
    refused(path, "empty", r"a\.h5::empty: expected a float array, got an empty dataspace$")
    refused(path, "type", r"a\.h5::type: expected a dataset, got a datatype$")


# HDF5 files that grow when read


def test_values_that_were_never_written_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("whole", (100, 8), "f4")
        file.create_dataset("chunks", (100, 8), "f4", chunks=(10, 8))
        file.create_dataset("parts", (100, 8), "f4", chunks=(10, 8), compression="gzip")[:31] = 1
    refused(path, "whole", r"a\.h5::whole: its values were never written$")
    refused(path, "chunks", r"a\.h5::chunks: 10 of its 10 chunks were never written$")
    refused(path, "parts", r"a\.h5::parts: 6 of its 10 chunks were never written$")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (7, 5), "maxshape": (None, 8)},
        {"chunks": (40, 8), "maxshape": (None, 8)},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf"},
        {"compression": "gzip", "chunks": (1, 1)},
    ],
)
@pytest.mark.parametrize("rows", [1, 23, 0])
def test_every_layout_that_is_whole_is_read(tmp_path: Path, options: dict, rows: int) -> None:
    values = np.random.RandomState(rows).standard_normal((rows, 8)).astype(np.float32)
    if not rows:
        options = {name: value for name, value in options.items() if name != "chunks"}
        options.setdefault("maxshape", (None, 8))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("v", data=values, **options)
    np.testing.assert_array_equal(load_features(tmp_path / "a.h5", "v"), values)


def test_compact_and_scalar_datasets_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple(ROWS.shape)
        h5py.h5d.create(file.id, b"compact", h5py.h5t.IEEE_F32LE, space, plan).write(space, space, ROWS)
        file["scalar"] = np.float32(3)
    np.testing.assert_array_equal(load_features(tmp_path / "a.h5", "compact"), ROWS)
    assert load_features(tmp_path / "a.h5", "scalar") == 3


@pytest.mark.slow
def test_a_chunk_that_unpacks_beyond_its_size_is_refused_before_it_does(tmp_path: Path) -> None:
    """HDF5 unpacks a whole chunk: 1 MB on the disk would take 1 GiB of memory."""
    path = tmp_path / "a.h5"
    pack = zlib.compressobj(9)
    bomb = b"".join(pack.compress(bytes(2**20)) for _ in range(1024)) + pack.flush()
    with h5py.File(path, "w") as file:
        for name, rows in (("near", 2**15), ("far", 2**10)):
            dataset = file.create_dataset(name, (rows, 8), "f4", chunks=(rows, 8), compression="gzip")
            dataset.id.write_direct_chunk((0, 0), bomb)
        file.create_dataset("wide", data=np.zeros((1, 8), "f4"), chunks=(2**22, 8), maxshape=(None, 8), compression=9)
        file.create_dataset(
            "lzf", data=np.zeros((1, 8), "f4"), chunks=(2**20, 8), maxshape=(None, 8), compression="lzf"
        )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, "near", r"a\.h5::near: a chunk holds more than the 1048576 bytes that it unpacks to$")
    refused(path, "far", r"a\.h5::far: a chunk holds more than the 32768 bytes that it unpacks to$")
    refused(path, "wide", r"a\.h5::wide: expected compressed chunks of at most 64 MiB, got 128 MiB$")
    refused(path, "lzf", r"a\.h5::lzf: expected compressed chunks of at most 16 MiB, got 32 MiB$")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024  # KiB


def test_a_large_chunk_of_compressible_values_is_read(tmp_path: Path) -> None:
    values = np.random.RandomState(0).randint(0, 4, (2**16, 8)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("v", data=values, chunks=values.shape, compression="gzip", fletcher32=True)
        stored = file["v"].id.get_storage_size()
    assert stored * 1032 > 2**28  # large enough for the chunk to be checked
    np.testing.assert_array_equal(load_features(tmp_path / "a.h5", "v"), values)


# Sizes, in every format


def npy_header(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def write_huge(path: Path) -> None:
    """Write a file that is small on the disk and whose array is just over the limit."""
    if path.suffix == ".npy":
        path.write_bytes(npy_header(MANY))
        os.truncate(path, 128 + MANY[0] * 32)  # the file is sparse
    elif path.suffix == ".npz":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
            member.write(npy_header(MANY) + bytes(4096))
    elif path.suffix == ".pt":
        torch.save(torch.zeros(1, 8).expand(*MANY), path)
    elif path.suffix == ".safetensors":
        save_file({"x": np.zeros((1, 8), np.float32)}, path)
        size = MANY[0] * 32
        head = f'{{"x":{{"dtype":"F32","shape":[{MANY[0]},8],"data_offsets":[0,{size}]}}}}'.encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head)
        os.truncate(path, 8 + len(head) + size)
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("x", MANY, "f4", chunks=(2**16, 8), compression="gzip")


@pytest.mark.parametrize("suffix", [".h5", ".npy", ".npz", ".pt", ".safetensors"])
def test_an_array_beyond_the_limit_is_refused_by_its_header(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    write_huge(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = (
        rf"x{re.escape(suffix)}.*: expected at most 2 GiB of one video's features, got \S+ \[67108865, 8\], 2\.0 GiB$"
    )
    with pytest.raises(InputError, match=message):
        load_features(path)
    with open_features(path if suffix == ".h5" else tmp_path) as store, pytest.raises(InputError, match=message):
        store["x"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024  # KiB


def test_a_pt_file_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(2**16, 8), tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(InputError, match=r"packed\.pt: a file of \d+ bytes unpacks to \d+, so it is not read$"):
        load_features(tmp_path / "packed.pt")
    assert load_features(tmp_path / "plain.pt").shape == (2**16, 8)


@pytest.mark.parametrize("suffix", [".h5", ".npy", ".npz", ".pt", ".safetensors"])
def test_another_width_is_refused_by_the_header(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["x"] = ROWS
    elif suffix == ".npy":
        np.save(path, ROWS)
    elif suffix == ".npz":
        np.savez(path, x=ROWS)
    elif suffix == ".pt":
        torch.save(torch.from_numpy(ROWS), path)
    else:
        save_file({"x": ROWS}, path)
    np.testing.assert_array_equal(load_features(path, width=8), ROWS)
    for width, hint in ((9, ""), (3, "; transpose it")):
        message = rf"expected a float array \[n_src, {width}\], got \S+ \[3, 8\]{hint}$"
        with pytest.raises(InputError, match=message):
            load_features(path, width=width)
        with (
            open_features(path if suffix == ".h5" else tmp_path, width=width) as store,
            pytest.raises(InputError, match=rf"^video 'x': .*{message}"),
        ):
            store["x"]


def test_an_npy_file_is_mapped_and_stays_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    before = (tmp_path / "a.npy").read_bytes()
    rows = load_features(tmp_path / "a.npy")
    assert type(rows) is np.ndarray
    rows[0] = 7  # changes the caller's copy only
    assert (tmp_path / "a.npy").read_bytes() == before
    for order, shape in (("F", (5, 8)), ("C", (0, 8))):
        values = np.ones(shape, np.float64, order=order)
        np.save(tmp_path / "b.npy", values)
        np.testing.assert_array_equal(load_features(tmp_path / "b.npy"), values)
