"""The thread pool of the native kernels: many callers at once, forks, and the number of threads per call."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mmn_fast.kernels import host
from mmn_fast.kernels.cpu import ops
from mmn_fast.process.cores import usable_cores


def vectors_of(seed: int) -> list[np.ndarray]:
    """Draw arguments for `match_scores`: a million cell visits, enough work for several threads."""
    rng = np.random.default_rng(seed)
    video, text = rng.standard_normal((256, 256), np.float32), rng.standard_normal((32, 256), np.float32)
    return [video, video, text, text]


def test_concurrent_calls_from_four_python_threads_give_the_serial_results():
    batches = [vectors_of(seed) for seed in range(8)]
    expected = [ops.match_scores(*vectors, threads=1) for vectors in batches]
    with ThreadPoolExecutor(4) as executor:
        for _ in range(10):
            results = executor.map(lambda vectors: ops.match_scores(*vectors, threads=3), batches)
            for result, wanted in zip(results, expected, strict=True):
                np.testing.assert_array_equal(result, wanted)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the threads' times from /proc")
def test_calls_at_the_same_time_share_the_workers_of_the_largest_call():
    script = """
import os, sys, threading, time, numpy as np
from contextlib import suppress
from mmn_fast.kernels.cpu import ops
rng = np.random.default_rng(0)
video, text = rng.standard_normal((4096, 256), np.float32), rng.standard_normal((64, 256), np.float32)
def work(threads, calls):
    for _ in range(calls):
        ops.match_scores(video, video, text, text, threads=threads)
def times():
    found = {}
    for name in os.listdir("/proc/self/task"):
        with suppress(OSError):  # a thread that has ended meanwhile
            found[name] = int(open(f"/proc/self/task/{name}/schedstat").read().split()[0])
    return found
before = set(times())
work(5, 1)
workers = set(times()) - before
assert len(workers) == 4, workers
for attempt in range(20):
    started = times()
    both = [threading.Thread(target=work, args=(3, 10)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    ended = times()
    if all(ended[name] > started[name] for name in workers):
        break
else:
    sys.exit(f"some of the four workers have never worked: {started}, {ended}")
until = time.monotonic() + 20
while set(times()) != before | workers:  # the callers' threads take a moment to end
    assert time.monotonic() < until, "there are further workers"
    time.sleep(0.01)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_forked_child_can_use_threads_again():
    script = """
import os, sys, numpy as np
from mmn_fast.kernels.cpu import ops
rng = np.random.default_rng(0)
video, text = rng.standard_normal((256, 256), np.float32), rng.standard_normal((32, 256), np.float32)
def scores():
    return np.stack(ops.match_scores(video, video, text, text, threads=3))
expected = scores()  # the parent's workers now exist
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        results = [scores() for _ in range(5)]
        os._exit(0 if all((r == expected).all() for r in results) else 1)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
assert (scores() == expected).all()
sys.exit(max(codes))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_num_threads_is_the_argument_then_the_environment_then_the_usable_cores(monkeypatch):
    monkeypatch.setenv("MMN_FAST_NUM_THREADS", "3")
    assert host.num_threads(7) == 7
    assert host.num_threads() == 3
    monkeypatch.delenv("MMN_FAST_NUM_THREADS")
    assert host.num_threads() == usable_cores()


@pytest.mark.parametrize("nonsense", ["0", "-2", "many", "2.5", "99999"])
def test_num_threads_refuses_nonsense_in_the_environment(monkeypatch, nonsense):
    monkeypatch.setenv("MMN_FAST_NUM_THREADS", nonsense)
    message = f"^MMN_FAST_NUM_THREADS: expected a whole number from 1 to 4096, got '{nonsense}'$"
    with pytest.raises(ValueError, match=message):
        ops.match_scores(*vectors_of(0))


def test_native_does_not_import_torch():
    script = "import sys, mmn_fast.kernels.cpu.ops; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
