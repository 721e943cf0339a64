"""Scenes of coloured shapes: tracks of the shapes, and facts about them (who does what, from when to when).

`stage.draw_scene` makes a scene, `rendering.render` turns its tracks into RGB frames.

Lengths are in frame widths, x to the right and y downwards, times in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmn_fast.arrays import Bool, Float64

FPS = 8

# Colour name -> hue in degrees, saturation, value.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0, 0.85, 0.90),
    "orange": (30, 0.92, 0.97),
    "yellow": (58, 0.85, 0.95),
    "green": (122, 0.75, 0.75),
    "cyan": (181, 0.80, 0.85),
    "blue": (236, 0.80, 0.92),
    "purple": (273, 0.75, 0.80),
    "pink": (328, 0.65, 0.98),
}
SHAPES = ("square", "circle", "triangle", "star", "ring", "cross")
# Direction of a moving shape, as a step in x and y.
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
SINGLE_ACTIONS = ("enter", "leave", "move", "grow", "shrink", "rotate", "blink", "recolour")
PAIR_ACTIONS = ("swap", "meet", "part")

BLINK_S = 0.5  # period of blinking: the shape shows for one half and is gone for the other


@dataclass(frozen=True)
class Thing:
    """The colour and form by which a sentence names a shape."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Fact:
    """Something that happens in a scene.

    Attributes:
        action: one of `SINGLE_ACTIONS` or `PAIR_ACTIONS`.
        things: the shapes that act, as they look at the start: one, or two for a pair's action.
        start_s: time of the start.
        end_s: time of the end.
        detail: the direction of a move, the edge of an entry or exit, the new colour of a recolouring, else "".
        implied: the fact is part of another one (a shape that enters from the left moves right) and gets no sentence.
    """

    action: str
    things: tuple[Thing, ...]
    start_s: float
    end_s: float
    detail: str = ""
    implied: bool = False


@dataclass(frozen=True, eq=False)
class Track:
    """The course of one shape through the whole scene.

    Attributes:
        shape: one of `SHAPES`.
        times: float64 [K] ascending, seconds.
        numbers: float64 [K, 7]: x, y, log radius, angle (radians) and RGB (0 to 1), linear between the times.
        blinks: spans in seconds in which the shape comes and goes.
    """

    shape: str
    times: Float64
    numbers: Float64
    blinks: tuple[tuple[float, float], ...]

    def at(self, times: Float64) -> Float64:
        """The numbers at any times, float64 [F, 7]."""
        return np.stack([np.interp(times, self.times, column) for column in self.numbers.T], axis=1)

    def visible(self, times: Float64) -> Bool:
        """Whether the shape shows, bool [F]; false in the dark halves of a blink."""
        shown = np.ones(len(times), bool)
        for start, end in self.blinks:
            phase = (times - start) % BLINK_S
            shown &= ~((times >= start) & (times < end) & (phase < BLINK_S / 2))
        return shown


@dataclass(frozen=True, eq=False)
class Scene:
    """A finished scene.

    Attributes:
        num_frames: its length in frames at `FPS`.
        background: RGB, 0 to 1.
        tracks: its shapes, from the back to the front.
        facts: all that happens, implied facts too, by start.
    """

    num_frames: int
    background: tuple[float, float, float]
    tracks: tuple[Track, ...]
    facts: tuple[Fact, ...]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_frames / FPS


def action_name(fact: Fact) -> str:
    """The action, with the direction for a move: the key of held-out combinations and of figures per action."""
    return f"{fact.action} {fact.detail}" if fact.action == "move" else fact.action


ACTION_NAMES = (
    tuple(
        name
        for action in SINGLE_ACTIONS
        for name in ([f"move {d}" for d in DIRECTIONS] if action == "move" else [action])
    )
    + PAIR_ACTIONS
)


def alike(fact: Fact, other: Fact) -> bool:
    """Whether one sentence could mean both facts, if it names colours and forms in full but no edge.

    Moves differ by direction and recolourings by the new colour; entries are alike whatever their edge.
    """
    if fact.action != other.action or set(fact.things) != set(other.things):
        return False
    return fact.detail == other.detail or fact.action in ("enter", "leave", "recolour")


def named_facts(scene: Scene) -> Iterator[Fact]:
    """Yield the facts that get sentences, by start."""
    return (fact for fact in scene.facts if not fact.implied)
