"""Origin of an engine: the arguments of `load` and the choices that followed, so that it can be loaded again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.presets import Preset
from mmn_fast.weights.hub import is_hub_id


@dataclass(frozen=True)
class Origin:
    """Origin of an engine, as values that can be pickled.

    Attributes:
        model: the name of a model in the box, a hub id, or an absolute path.
        preset: the model's preset if the caller named one, else None.
        tokenizer: a hub id or an absolute path if the caller named one, else None.
        device: argument of `load`.
        precision: argument of `load`.
        backend: name of the chosen backend.
        threads: argument of `load`, or the environment's value.
        progress: argument of `load`.
        options: the backend's own settings.
        source: the model's name in messages.
        fingerprint: the model's fingerprint.
        manifest_sha256: SHA-256 of an export's manifest, because all exports of a model have one fingerprint; None
            without an export.
        runs_on: "cpu" or "cuda".
        passed_over: why "auto" skipped the backends that it tried earlier.
    """

    model: str
    preset: Preset | None
    tokenizer: str | None
    device: str
    precision: str
    backend: str
    threads: int | None
    progress: bool
    options: tuple[tuple[str, Any], ...]
    source: str
    fingerprint: str
    manifest_sha256: str | None
    runs_on: str
    passed_over: tuple[tuple[str, str], ...]

    def arguments(self) -> dict[str, Any]:
        """The arguments of `load`."""
        names = ("model", "preset", "tokenizer", "device", "precision", "backend", "threads", "progress")
        return {**{name: getattr(self, name) for name in names}, "backend_options": dict(self.options)}

    def check(self, found: Origin) -> None:
        """Refuse an engine that differs from the pickled one.

        Args:
            found: origin of the engine that was loaded again.

        Raises:
            InputError: the model has changed.
            BackendUnavailable: the engine ran on CUDA and would now run on the CPU, or the other way round.
        """
        if found.fingerprint != self.fingerprint:
            raise InputError(
                f"model: {self.model} has changed since the engine was pickled: expected fingerprint"
                f" {self.fingerprint}, got {found.fingerprint}; load it and pickle the engine again"
            )
        if found.manifest_sha256 != self.manifest_sha256:
            raise InputError(
                f"model: {self.model} is not the export that was pickled: expected a manifest of sha256"
                f" {self.manifest_sha256}, got {found.manifest_sha256}; load it and pickle the engine again"
            )
        if found.runs_on != self.runs_on:
            raise BackendUnavailable(
                f"backend {self.backend!r}: the pickled engine ran on {self.runs_on}, but device {self.device!r} is"
                f" {found.runs_on} here; name the device in load()"
            )


def absolute(name: str | Path) -> str:
    """Make a model's or tokenizer's name independent of the working directory: an absolute path, or a hub id."""
    return str(name) if is_hub_id(name) and not Path(name).exists() else str(Path(name).absolute())
