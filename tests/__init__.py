"""Sets OMP_NUM_THREADS before a test imports PyTorch, so that the processes of pytest-xdist share the CPUs."""

import os

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

if WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CPUS // WORKERS)))
