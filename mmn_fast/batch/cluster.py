"""Connects to a Ray cluster, and keeps Ray Data quiet on it."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from mmn_fast.errors import InputError
from mmn_fast.features.messages import first_line

_LOOPBACK = ("127.0.0.1", "localhost")
_ANSWER_S = 5.0
_ENDS_S = 30.0
_NO_TELEMETRY = "RAY_DATA_USAGE_DISABLED"


def ray_module() -> Any:
    """The module `ray`.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        return import_module("ray")
    except ImportError as error:
        raise InputError(f"ray: needs Ray (pip install mmn_fast[ray]): {error}") from None


def data_module() -> Any:
    """The module `ray.data`.

    Raises:
        InputError: Ray, or what Ray Data needs, is not installed.
    """
    ray_module()
    try:
        return import_module("ray.data")
    except ImportError as error:
        raise InputError(f"ray: needs Ray Data (pip install mmn_fast[ray]): {error}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Let Ray Data show warnings alone, and not that its progress bars are off; its log files keep all.

    Its telemetry is off as well: it would poll from a thread of this process for as long as the process lives.
    """
    console = next((one for one in logging.getLogger("ray.data").handlers if one.name == "console"), None)
    bars = logging.getLogger("ray.data._internal.progress")
    before = bars.level, logging.NOTSET if console is None else console.level, os.environ.get(_NO_TELEMETRY)
    bars.setLevel(logging.ERROR)
    os.environ[_NO_TELEMETRY] = "1"
    if console is not None:
        console.setLevel(logging.WARNING)
    try:
        yield
    finally:
        bars.setLevel(before[0])
        if console is not None:
            console.setLevel(before[1])
        if before[2] is None:
            del os.environ[_NO_TELEMETRY]
        else:
            os.environ[_NO_TELEMETRY] = before[2]


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connect to a cluster for a while; a connection of this process that exists already is used and kept.

    Args:
        address: HOST:PORT of a cluster's head; "auto" for the cluster of this machine; "local" starts Ray on this
            machine for as long as the connection lives; None takes RAY_ADDRESS, else as "local".

    Yields:
        The module `ray`.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """
    ray = ray_module()
    if ray.is_initialized():
        yield ray
        return
    check_answers(address)
    try:
        ray.init(**init_options(address))
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"address: no Ray cluster answers at {address!r}: {first_line(error)}") from None
    try:
        yield ray
    finally:
        for thread in threading.enumerate():
            if thread.name.startswith("StreamingExecutor"):  # of Ray Data, which itself waits for 2 s
                thread.join(_ENDS_S)  # if it asked Ray something after the next line, Ray would end this process
        ray.shutdown()


def host_and_port(address: str) -> tuple[str, int] | None:
    """Host and port of HOST:PORT; None for another kind of address, which Ray understands."""
    host, colon, port = address.rpartition(":")
    return (host, int(port)) if colon and host and "/" not in address and port.isdecimal() else None


def check_answers(address: str | None) -> None:
    """Refuse Ray Client, and HOST:PORT at which nothing listens, because Ray itself would try for a minute."""
    if address is not None and address.startswith("ray://"):
        raise InputError(f"address: expected HOST:PORT, auto or local, on a machine of the cluster, got {address!r}")
    place = None if address is None else host_and_port(address)
    if place is None:
        return
    try:
        socket.create_connection(place, _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"address: no Ray cluster answers at {address!r}: {error}") from None


def init_options(address: str | None) -> dict[str, Any]:
    """The arguments of `ray.init`."""
    options: dict[str, Any] = {"address": address, "logging_level": logging.WARNING, "log_to_driver": False}
    place = None if address is None else host_and_port(address)
    if address in (None, "local") or (place is not None and place[0] in _LOOPBACK):
        options["_node_ip_address"] = "127.0.0.1"  # else Ray looks for an address that the internet can reach
    if address == "local":
        options["include_dashboard"] = False
    return options
