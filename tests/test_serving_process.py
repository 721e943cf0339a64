"""The serving process: it ends well after SIGTERM, clients that leave cost nothing, nothing stays behind a crash."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")

from mmn_fast.cli.streams import warnings_as_lines
from mmn_fast.errors import InputError
from mmn_fast.serving.process import read_key
from mmn_fast.serving.uploads import private_folder
from tests.command import run_here
from tests.served import SENTENCES, made_app, serving, shapes


def _half_a_request(address: str) -> socket.socket:
    """A connection whose body never ends."""
    made = socket.create_connection(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2])))
    head = "POST /v1/ground HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    made.sendall(f"{head}Content-Length: 100000\r\n\r\n--x\r\n".encode())
    return made


def _wait_for(found: Any) -> None:
    for _ in range(1000):
        if found():
            return
        time.sleep(0.02)
    raise AssertionError("waited too long")


@pytest.mark.slow
def test_after_sigterm_the_service_answers_what_it_has_and_ends_with_status_0(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    with made_app(tmp_path):
        pass
    with serving(tmp_path / "index", "--temporary", str(folder), "--drain", "1") as (process, address):
        for _ in range(3):
            _half_a_request(address).close()  # clients that go away
        gone = 'mmn_fast_requests_total{route="/v1/ground",status="499"} 3.0'
        _wait_for(lambda: gone in httpx.get(f"{address}metrics").text)
        assert "mmn_fast_active_requests 0.0" in httpx.get(f"{address}metrics").text

        answers: list[int] = []
        body = {"video": shapes(0).video_id, "sentences": SENTENCES * 20}

        def ask() -> None:
            try:
                with httpx.Client(base_url=address, timeout=20) as client:
                    while True:
                        answers.append(client.post("v1/ground", json=body).status_code)
            except httpx.TransportError:
                pass  # the service is gone

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        _wait_for(lambda: len(answers) > 12)
        stuck = _half_a_request(address)  # has the drain's second, not more
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=15)
        assert (process.returncode, out) == (0, ""), error
        assert time.monotonic() - started < 12  # a second of draining, and the end of Python
        for thread in threads:
            thread.join()
        stuck.close()
        assert "Traceback" not in error, error
        assert set(answers) <= {200, 503}
        assert not list(folder.iterdir())


def test_what_a_killed_service_leaves_is_removed_by_the_next_one(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, signal
from mmn_fast.serving.uploads import private_folder
with private_folder(pathlib.Path({str(tmp_path)!r}) / "uploads") as folder:
    (folder / "a.video").write_bytes(b"private")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    parent = tmp_path / "uploads"
    (left,) = parent.glob(".uploads.partial-????????????")
    assert (left / "a.video").is_file()
    with private_folder(parent) as folder:
        assert not left.exists()
        assert (folder.stat().st_mode & 0o777, parent.stat().st_mode & 0o777) == (0o700, 0o700)
        (folder / "b.video").write_bytes(b"private")
    assert not list(parent.iterdir())


def test_a_folder_of_someone_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(InputError, match="uploads: expected a folder of this user"), private_folder(tmp_path / "link"):
        pass
    with pytest.raises(InputError, match="uploads: cannot use .*: No such file"), private_folder(tmp_path / "a" / "b"):
        pass


def test_the_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text("a-key-of-sixteen-characters\n")
    monkeypatch.setenv("MMN_FAST_API_KEY", "another-key-of-twenty")
    assert read_key(None) == "another-key-of-twenty"
    assert read_key(file) == "a-key-of-sixteen-characters"
    file.write_text("short")
    with pytest.raises(InputError, match="--api-key-file: expected a key of at least 16 ASCII characters"):
        read_key(file)
    monkeypatch.delenv("MMN_FAST_API_KEY")
    assert read_key(None) is None
    with pytest.raises(InputError, match="--api-key-file"):
        read_key(tmp_path / "absent")


def test_an_address_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    with made_app(tmp_path):
        pass
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        index, folder = tmp_path / "index", tmp_path / "uploads"
        done = run_here("serve", "--model", "demo", "--index", index, "--port", port, "--temporary", folder)
    assert done.returncode == 2
    assert done.stderr == f"mmn-fast: --port: cannot listen at 127.0.0.1, port {port}: Address already in use\n"
    assert done.stdout == ""
    assert not list(folder.iterdir())


def test_the_log_of_a_process_shows_a_fault_with_its_traceback_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MMN_FAST_LOG", raising=False)
    log = logging.getLogger("mmn_fast.serving")
    with warnings_as_lines():
        for _ in range(2):
            try:
                raise ZeroDivisionError("by nothing")
            except ZeroDivisionError:
                log.exception("GET /%s failed", "a path")
        log.warning("only a warning")
    first, *trace, last = capsys.readouterr().err.splitlines()
    assert (first, last) == ("mmn-fast: warning: GET /a path failed", "mmn-fast: warning: only a warning")
    assert (trace[0], trace[-1]) == ("Traceback (most recent call last):", "ZeroDivisionError: by nothing")
