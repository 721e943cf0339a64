"""Number of CPU cores that this process may use: from its affinity mask, its control group's quota, OMP_NUM_THREADS."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple


def usable_cores() -> int:
    """Cores that this process may keep busy, at least 1.

    The result is the smallest of three numbers: the cores of the affinity mask (`taskset`, cpusets), the CPU quota of
    the control group or of a group above it, rounded up to whole cores, and the first number of OMP_NUM_THREADS. The
    quota and OMP_NUM_THREADS are read once per process.
    """
    granted = _cores_of_the_mask()
    return min(granted, _limit() or granted)


def limited_cores() -> int | None:
    """`usable_cores()` if a quota or OMP_NUM_THREADS grants fewer cores than the affinity mask; else None.

    Libraries that choose their number of threads by the mask alone need this number.
    """
    limit = _limit()
    return limit if limit is not None and limit < _cores_of_the_mask() else None


def _cores_of_the_mask() -> int:
    # Not os.cpu_count(): a container or taskset may grant fewer. macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _limit() -> int | None:
    limits = [omp_threads(os.environ.get("OMP_NUM_THREADS")), quota_cores()]
    return min((limit for limit in limits if limit is not None), default=None)


def omp_threads(value: str | None) -> int | None:
    """Threads of the outermost level that OMP_NUM_THREADS asks for; None if it is not set or not a valid number.

    OpenMP takes a list, one number per level of nesting. An invalid value is ignored with a warning, as in OpenMP.
    """
    if not value or not value.strip():
        return None
    first = value.split(",")[0].strip()
    if first.isascii() and first.isdigit() and int(first[:9]) >= 1:
        return int(first[:9])
    warnings.warn(f"OMP_NUM_THREADS: expected a whole number >= 1, got {value!r}; it is ignored", stacklevel=2)
    return None


class _Mount(NamedTuple):
    """A mounted hierarchy of control groups: the group at its root, where it is mounted, whether it is version 2."""

    root: PurePosixPath
    point: Path
    unified: bool


def quota_cores(system: Path = Path("/")) -> int | None:
    """Cores of the CPU quota of this process's control group, rounded up; None without a quota.

    Version 1 (`cpu.cfs_quota_us`) and version 2 (`cpu.max`) are read, for the group and for all groups above it. In a
    container, groups above the container's own are not visible.

    Args:
        system: the folder that holds proc and the mount points; tests give another one.
    """
    quotas = [quota for folder, unified in _group_folders(system) if (quota := _quota(folder, unified)) is not None]
    return max(1, -int(-min(quotas) // 1)) if quotas else None


def _quota(folder: Path, unified: bool) -> float | None:
    """Cores that one group's files grant, as a fraction; None if the files set no limit or do not exist."""
    try:
        if unified:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        cores = int(quota) / int(period)  # "max" and -1 are no limit
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None


def _group_folders(system: Path) -> Iterator[tuple[Path, bool]]:
    """Yield, for every hierarchy that may have a CPU quota, the folder of this process's group and of those above."""
    try:
        groups = (system / "proc/self/cgroup").read_text().splitlines()
        mounts = list(_mounts(system))
    except (OSError, ValueError):
        return
    for line in groups:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = PurePosixPath(path)
        for mount in mounts:
            if mount.unified != (controllers == ""):
                continue
            # In a container the group's path may be the host's, while the mount shows only the container's own group.
            below = group.relative_to(mount.root) if group.is_relative_to(mount.root) else PurePosixPath()
            for part in (below, *below.parents):
                yield mount.point / part, mount.unified


def _mounts(system: Path) -> Iterator[_Mount]:
    """Mounts; see proc_pid_mountinfo(5): ID, parent, device, root, mount point, options ... - type, source, options."""
    for line in (system / "proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2" or (kind[0] == "cgroup" and "cpu" in kind[2].split(",")):
            yield _Mount(PurePosixPath(fields[3]), system / fields[4].lstrip("/"), kind[0] == "cgroup2")
