"""Checks whether a checkpoint belongs to the run that wants to resume from it."""

from __future__ import annotations

from typing import Any

from mmn_fast.errors import InputError


def check_same_run(then: dict[str, Any], now: dict[str, Any], epochs_done: int, where: str) -> str | None:
    """Refuse a checkpoint of another run. Only the number of epochs may grow.

    Args:
        then: the settings at the run's beginning, as plain JSON values.
        now: the settings of this call, as plain JSON values.
        epochs_done: whole epochs that the checkpoint holds.
        where: the checkpoint's name in messages.

    Returns:
        One sentence about the additional epochs; None if there are none.

    Raises:
        InputError: a setting differs, or fewer epochs are asked for; the message names the setting and both values.
    """
    differing = _differences(then, now)
    epochs = differing.pop(("preset", "recipe", "epochs"), None)
    if differing:
        (path, (before, after)), *others = differing.items()
        also = f"; also different: {', '.join(other[-1] for other, _ in others)}" if others else ""
        raise InputError(f"{where}: {path[-1]}: the run was begun with {before!r}, got {after!r}{also}")
    if epochs is None:
        return None
    before, after = epochs
    if after < before:
        raise InputError(f"{where}: epochs: the run was begun with {before!r}, got {after!r}; it can only be extended")
    milestones = ", ".join(map(str, now["preset"]["recipe"]["milestones"])) or "none"
    return (
        f"extended from {before} to {after} epochs, of which {epochs_done} are done; the milestones stay where they are"
        f" ({milestones})"
    )


def _differences(then: Any, now: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], tuple[Any, Any]]:
    """Settings that differ: path of the setting -> (value then, value now); None stands for an absent value."""
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return {} if then == now else {path: (then, now)}
    found: dict[tuple[str, ...], tuple[Any, Any]] = {}
    for name in now:
        found |= _differences(then.get(name), now[name], (*path, name))
    return found
