"""Locks that are free in forked children, and values that are made once, whatever threads and forks do."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

import pytest

from mmn_fast.process.forks import Lock, fork_waits, forked_thread
from mmn_fast.process.once import Once, kept_property
from tests.processes import in_fork, not_for_ever  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[1]


def test_a_lock_is_free_in_a_forked_child() -> None:
    lock, held, leave = Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            leave.wait()

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    held.wait()

    def child() -> bool:
        with lock:
            return True

    try:
        assert in_fork(child, 20)
    finally:
        leave.set()
        thread.join()


def test_a_fork_waits_for_calls_and_calls_wait_for_a_fork() -> None:
    ended: list[str] = []
    inside = threading.Event()

    def call() -> None:
        with fork_waits, fork_waits:
            inside.set()
            time.sleep(0.5)
            ended.append("call")

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    inside.wait()
    assert in_fork(lambda: list(ended)) == ["call"]
    thread.join()
    with fork_waits:  # a thread's own fork waits for nobody, and both processes leave the call
        assert in_fork(lambda: dict(fork_waits._calls)) == {threading.get_ident(): 1}
    assert fork_waits._calls == {}
    assert fork_waits._forking == set()


def test_two_threads_that_fork_within_calls_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forks are simulated: before a real one, other libraries lock their own locks, and two threads meet there."""
    monkeypatch.setattr("mmn_fast.process.forks._LONGEST_WAIT_S", 600.0)
    both, passed = threading.Barrier(2), []

    def call() -> None:
        with fork_waits:
            both.wait()
            fork_waits.before_fork()
            passed.append(threading.get_ident())
            fork_waits.after_fork_in_parent()

    threads = [threading.Thread(target=call, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(passed)) == 2


def test_the_thread_of_a_fork_is_known() -> None:
    main = threading.get_ident()
    assert forked_thread() != main or os.getpid() != os.getppid()
    assert in_fork(lambda: forked_thread() == threading.get_ident())


def test_values_are_made_once_and_do_not_wait_for_others() -> None:
    once: Once[str, object] = Once()
    slow, leave, made = threading.Event(), threading.Event(), []

    def make_slow() -> object:
        made.append("slow")
        slow.set()
        leave.wait()
        return object()

    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(once.get("slow", make_slow))) for _ in range(3)]
    for thread in threads:
        thread.start()
    slow.wait()
    assert once.get("other", lambda: 1) == 1
    assert once.get("other", lambda: 2) == 1
    assert in_fork(lambda: once.get("slow", lambda: "made in the child"), 20) == "made in the child"
    assert not found
    leave.set()
    for thread in threads:
        thread.join()
    assert made == ["slow"]
    assert len(found) == 3
    assert len(set(map(id, found))) == 1


def test_a_value_that_could_not_be_made_is_tried_again() -> None:
    once: Once[str, int] = Once()
    waiting, failed = threading.Barrier(2), []

    def fail() -> int:
        waiting.wait()
        time.sleep(0.2)
        raise ValueError("no")

    def ask() -> None:
        waiting.wait()
        try:
            once.get("key", fail)
        except ValueError as error:
            failed.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    with pytest.raises(ValueError, match="no"):
        once.get("key", fail)
    thread.join()
    assert len(failed) == 1
    assert once.get("key", lambda: 3) == 3


def test_a_kept_property_is_worked_out_once_and_holds_no_lock() -> None:
    working, leave = threading.Event(), threading.Event()

    class Slow:
        """A class with a value that is made once."""

        @kept_property
        def value(self) -> list[int]:
            """Make the value."""
            if not working.is_set():
                working.set()
                leave.wait()
            return [1]

    shared = Slow()
    thread = threading.Thread(target=lambda: shared.value, daemon=True)
    thread.start()
    working.wait()
    assert in_fork(lambda: (shared.value, Slow().value), 20) == ([1], [1])
    leave.set()
    thread.join()
    assert shared.value is shared.value
    assert Slow.value.__doc__ == "Make the value."


def test_every_lock_knows_of_forks() -> None:
    """A child may find a lock of the standard library locked for ever, so only mmn_fast/process/forks.py uses those."""
    pattern = re.compile(r"threading\.(R?Lock|Condition|Semaphore|BoundedSemaphore|Barrier)\b|\bcached_property\b")
    found = {
        f"{path.relative_to(ROOT)}:{number}"
        for folder in ("mmn_fast", "export", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "forks.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line) and "`functools.cached_property`" not in line and "as functools." not in line
    }
    assert not found
