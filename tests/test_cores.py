"""The number of cores that a process may use: from simulated control groups, real affinity masks and variables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmn_fast.process.cores import omp_threads, quota_cores

V2 = "0::{group}\n"
V2_MOUNT = "29 23 0:26 {root} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "5:memory:/elsewhere\n4:cpu,cpuacct:{group}\n1:name=systemd:/\n0::/\n"
V1_MOUNT = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "34 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


def system_of(folder: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """Write a simulated system: proc/self and the control groups."""
    own = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    for name, content in (own | {f"sys/fs/cgroup/{name}": content for name, content in files.items()}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("group", "root", "files", "expected"),
    [
        ("/", "/", {"cpu.max": "200000 100000\n"}, 2),
        ("/", "/", {"cpu.max": "150000 100000\n"}, 2),
        ("/", "/", {"cpu.max": "20000 100000\n"}, 1),
        ("/", "/", {"cpu.max": "max 100000\n"}, None),
        ("/", "/", {"cpu.max": "nonsense\n"}, None),
        ("/", "/", {"cpu.max": "100000 0\n"}, None),
        ("/", "/", {}, None),
        ("/a/b", "/", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("/a/b", "/", {"a/b/cpu.max": "100000 100000\n", "a/cpu.max": "300000 100000\n"}, 1),
        ("/docker/0", "/docker/0", {"cpu.max": "400000 100000\n"}, 4),
        ("/../outside", "/", {"cpu.max": "500000 100000\n"}, 5),
    ],
)
def test_version_2_quotas(group: str, root: str, files: dict[str, str], expected: int | None, tmp_path: Path) -> None:
    system = system_of(tmp_path, V2.format(group=group), V2_MOUNT.format(root=root), files)
    assert quota_cores(system) == expected


@pytest.mark.parametrize(
    ("group", "root", "files", "expected"),
    [
        ("/", "/", {"": (250000, 100000)}, 3),
        ("/", "/", {"": (-1, 100000)}, None),
        ("/slice/job", "/", {"slice/job": (-1, 100000), "slice": (50000, 50000)}, 1),
        ("/docker/0", "/docker/0", {"": (200000, 100000)}, 2),
        ("/docker/0", "/kubepods/1", {"": (700000, 100000)}, 7),
    ],
)
def test_version_1_quotas(
    group: str, root: str, files: dict[str, tuple[int, int]], expected: int | None, tmp_path: Path
) -> None:
    made = {}
    for folder, (quota, period) in files.items():
        made[f"cpu,cpuacct/{folder}/cpu.cfs_quota_us"] = f"{quota}\n"
        made[f"cpu,cpuacct/{folder}/cpu.cfs_period_us"] = f"{period}\n"
    system = system_of(tmp_path, V1.format(group=group), V1_MOUNT.format(root=root), made)
    assert quota_cores(system) == expected


@pytest.mark.parametrize("files", [{}, {"proc/self/cgroup": "\n:\nnonsense\n", "proc/self/mountinfo": "- - -\n\n"}])
def test_without_control_groups_there_is_no_quota(files: dict[str, str], tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert quota_cores(tmp_path) is None


@pytest.mark.parametrize(("value", "expected"), [(None, None), ("", None), ("3", 3), ("4,2", 4), (" 5 ", 5)])
def test_omp_num_threads(value: str | None, expected: int | None) -> None:
    assert omp_threads(value) == expected


@pytest.mark.parametrize("value", ["0", "-1", "many", "2.5", ",4", "²"])
def test_another_omp_num_threads_is_ignored_with_a_warning(value: str) -> None:
    with pytest.warns(UserWarning, match="^OMP_NUM_THREADS: expected a whole number >= 1, got "):
        assert omp_threads(value) is None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1", "MMN_FAST_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "1000"}, None),
        ({}, None),
    ],
)
def test_native_takes_no_more_threads_than_omp_num_threads(variables: dict[str, str], expected: int | None) -> None:
    environment = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    code = "from mmn_fast.kernels import host; print(host.num_threads())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    granted = min(len(os.sched_getaffinity(0)), quota_cores() or 4096)  # without this process's OMP_NUM_THREADS
    assert int(done.stdout) == (expected or granted)
