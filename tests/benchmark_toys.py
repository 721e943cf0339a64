"""Candidates of a measurement that do nothing. Their processes import this module and not that of the tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mmn_fast.benchmarking.turns import Call
from mmn_fast.errors import BackendUnavailable


def make_toy(log: Path, name: str, value: float) -> dict[str, Call]:
    """Make a candidate that writes its name to a file on every call."""

    def call() -> tuple[np.ndarray, ...]:
        with log.open("a") as file:
            file.write(name)
        return (np.full(3, value),)

    return {"one": call, "two": call}


def make_unavailable() -> dict[str, Call]:
    raise BackendUnavailable("there is no such thing here")


def make_broken() -> dict[str, Call]:
    def call() -> tuple[np.ndarray, ...]:
        raise ZeroDivisionError("divided\nby zero")

    return {"one": call, "two": call}


def make_dying() -> dict[str, Call]:
    return {"one": lambda: os._exit(7), "two": lambda: os._exit(7)}
