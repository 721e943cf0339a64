"""Makes scenes: draws a few shapes at random and moves them along piecewise linear tracks from action to action."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mmn_fast.demo.scenes import (
    BLINK_S,
    COLOURS,
    DIRECTIONS,
    FPS,
    OPPOSITE,
    PAIR_ACTIONS,
    SHAPES,
    Fact,
    Scene,
    Thing,
    Track,
    action_name,
    alike,
)
from mmn_fast.errors import InputError

# Shapes that look different after a turn.
_TURNABLE = ("square", "triangle", "star", "cross")
_SMALL, _LARGE = 0.07, 0.175  # least and largest radius of shrinking and growing
_MARGIN = 0.02
_APART, _CLEAR = 0.36, 0.04  # distance of centres that are apart; gap between shapes at rest
_LAST_GAP_S = 0.25
# How often each action is tried first.
_WHEN_ALONE = {
    **{"move": 7.0, "leave": 0.7, "grow": 3.5, "shrink": 0.8, "rotate": 0.5, "blink": 0.3, "recolour": 0.25},
    **{"swap": 1.5, "meet": 4.0},
}
_WHEN_TOGETHER = {"part": 12.0, "rotate": 0.5, "blink": 0.3, "recolour": 0.2}


Allowed = Callable[[str, str, str], bool]
"""Whether (colour, shape, action) may happen; moves are named by `action_name`."""


@dataclass(frozen=True)
class _State:
    """A shape's look at one time."""

    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[float, float, float]

    def numbers(self) -> list[float]:
        return [self.x, self.y, np.log(self.radius), self.angle, *self.rgb]


@dataclass
class _Actor:
    """A shape while its scene is being made."""

    thing: Thing
    state: _State
    inside: bool
    free_s: float
    times: list[float] = field(default_factory=list)
    numbers: list[list[float]] = field(default_factory=list)
    blinks: list[tuple[float, float]] = field(default_factory=list)
    partner: _Actor | None = None

    def __post_init__(self) -> None:
        self._knot(0.0)

    def _knot(self, time_s: float) -> None:
        self.times.append(time_s)
        self.numbers.append(self.state.numbers())

    def change(self, start_s: float, end_s: float, state: _State) -> None:
        self._knot(start_s)
        self.state = state
        self._knot(end_s)
        self.free_s = end_s


class _Stage:
    """Makes one scene: shapes at rest are never close to each other, and each shape does one thing at a time."""

    def __init__(self, rng: np.random.Generator, allowed: Allowed) -> None:
        self.rng = rng
        self.allowed = allowed
        self.num_frames = int(rng.integers(10 * FPS, 17 * FPS + 1))
        self.duration_s = self.num_frames / FPS
        self.facts: list[Fact] = []
        self.actors: list[_Actor] = []
        for _ in range(int(rng.integers(3, 5))):
            self._cast()

    def play(self) -> None:
        """Add actions until the scene is over."""
        idle = 0
        while idle < 12:
            waiting = [a for a in self.actors if self.duration_s - a.free_s > self._shortest + 2 * _LAST_GAP_S]
            if not waiting:
                return
            actor = min(waiting, key=lambda a: a.free_s)
            if self._act(actor):
                idle = 0
            else:
                idle += 1
                actor.free_s += float(self.rng.uniform(0.5, 1.5))

    @property
    def _shortest(self) -> float:
        return max(1.5, 0.15 * self.duration_s)

    def _uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def _cast(self) -> None:
        """Add a shape that looks like no other, at rest inside the frame or waiting outside."""
        taken = {a.thing for a in self.actors}
        colours = {thing.colour for thing in taken}
        while True:
            thing = Thing(str(self.rng.choice(list(COLOURS))), str(self.rng.choice(SHAPES)))
            if thing not in taken and (thing.colour not in colours or self.rng.random() < 0.1):
                break
        radius = self._uniform(0.08, 0.13)
        rgb = _rgb(thing.colour, self.rng)
        angle = self._uniform(-0.25, 0.25)
        actor = _Actor(thing, _State(-1.0, -1.0, radius, angle, rgb), False, self._uniform(0.0, 2.5))
        place = self._free_place(actor) if self.rng.random() < 0.8 else None
        if place is not None:
            resting = _State(*place, radius, angle, rgb)
            actor = _Actor(thing, resting, True, actor.free_s)
            others = [a for a in self.actors if a.inside and a.partner is None]
            if others and self.rng.random() < 0.4:
                mate = others[int(self.rng.integers(len(others)))]
                beside = self._beside(actor, mate)
                if beside is not None:
                    actor = _Actor(thing, _State(*beside, radius, angle, rgb), True, actor.free_s)
                    actor.partner, mate.partner = mate, actor
        self.actors.append(actor)

    def _fits(self, x: float, y: float, radius: float, leaving_out: tuple[_Actor, ...]) -> bool:
        reach = 1.15 * radius + _MARGIN
        if not (reach <= x <= 1 - reach and reach <= y <= 1 - reach):
            return False
        return all(
            np.hypot(x - a.state.x, y - a.state.y) > 1.15 * (radius + a.state.radius) + _CLEAR
            for a in self.actors
            if a.inside and a not in leaving_out
        )

    def _free_place(self, actor: _Actor) -> tuple[float, float] | None:
        for _ in range(30):
            x, y = self._uniform(0.1, 0.9), self._uniform(0.1, 0.9)
            if self._fits(x, y, actor.state.radius, (actor,)):
                return x, y
        return None

    def _beside(self, actor: _Actor, mate: _Actor) -> tuple[float, float] | None:
        distance = 1.1 * (actor.state.radius + mate.state.radius)
        for _ in range(20):
            angle = self._uniform(0, 2 * np.pi)
            x, y = mate.state.x + distance * np.cos(angle), mate.state.y + distance * np.sin(angle)
            if self._fits(x, y, actor.state.radius, (actor, mate)):
                return x, y
        return None

    def _act(self, actor: _Actor) -> bool:
        start = actor.free_s + self._uniform(_LAST_GAP_S, 2.0)
        longest = min(0.42 * self.duration_s, self.duration_s - start - _LAST_GAP_S)
        if longest < self._shortest:
            actor.free_s = self.duration_s
            return False
        end = start + self._uniform(self._shortest, longest)
        if not actor.inside:
            return self._enter(actor, start, end)
        weights = _WHEN_TOGETHER if actor.partner is not None else _WHEN_ALONE
        # Actions are tried in the order of a weighted draw until one is possible. With a single draw, actions that are
        # often impossible would be rare.
        order = sorted(weights, key=lambda name: self.rng.exponential() / weights[name])
        for action in order[:4]:
            if action in PAIR_ACTIONS:
                done = self._act_together(action, actor, end - start)
            else:
                done = getattr(self, f"_{action}")(actor, start, end)
            if done:
                return True
        return False

    def _add(self, facts: list[Fact]) -> bool:
        """Add the facts, unless one is held out or makes a sentence about it or about an earlier fact ambiguous."""
        named = [fact for fact in facts if not fact.implied]
        if not all(self.allowed(t.colour, t.shape, action_name(f)) for f in named for t in f.things):
            return False
        if any(alike(fact, other) for fact in facts for other in self.facts if not (fact.implied and other.implied)):
            return False
        self.facts += facts
        return True

    def _enter(self, actor: _Actor, start: float, end: float) -> bool:
        target = self._free_place(actor)
        if target is None:
            return False
        edge = str(self.rng.choice(list(DIRECTIONS)))
        facts = [
            Fact("enter", (actor.thing,), start, end, edge),
            Fact("move", (actor.thing,), start, end, OPPOSITE[edge], implied=True),
        ]
        if not self._add(facts):
            return False
        outside = self._outside(actor.state, *target, edge)
        actor.state, actor.numbers = outside, [outside.numbers()]  # this is the shape's first action
        actor.change(start, end, _moved(outside, *target))
        actor.inside = True
        return True

    @staticmethod
    def _outside(state: _State, x: float, y: float, edge: str) -> _State:
        """The state just past an edge, level with a place inside."""
        reach = 1.2 * state.radius
        step_x, step_y = DIRECTIONS[edge]
        return _moved(
            state,
            x if step_x == 0 else (-reach if step_x < 0 else 1 + reach),
            y if step_y == 0 else (-reach if step_y < 0 else 1 + reach),
        )

    def _leave(self, actor: _Actor, start: float, end: float) -> bool:
        edge = str(self.rng.choice(list(DIRECTIONS)))
        facts = [
            Fact("leave", (actor.thing,), start, end, edge),
            Fact("move", (actor.thing,), start, end, edge, implied=True),
        ]
        if not self._add(facts):
            return False
        actor.change(start, end, self._outside(actor.state, actor.state.x, actor.state.y, edge))
        actor.inside, actor.free_s = False, self.duration_s
        return True

    def _move(self, actor: _Actor, start: float, end: float) -> bool:
        for _ in range(20):
            direction = str(self.rng.choice(list(DIRECTIONS)))
            step_x, step_y = DIRECTIONS[direction]
            far = self._uniform(0.22, 0.65)
            x, y = actor.state.x + far * step_x, actor.state.y + far * step_y
            if self._fits(x, y, actor.state.radius, (actor,)):
                break
        else:
            return False
        if not self._add([Fact("move", (actor.thing,), start, end, direction)]):
            return False
        actor.change(start, end, _moved(actor.state, x, y))
        return True

    def _grow(self, actor: _Actor, start: float, end: float) -> bool:
        return self._resize(actor, start, end, "grow", min(_LARGE / actor.state.radius, 1.9))

    def _shrink(self, actor: _Actor, start: float, end: float) -> bool:
        return self._resize(actor, start, end, "shrink", min(actor.state.radius / _SMALL, 1.9))

    def _resize(self, actor: _Actor, start: float, end: float, action: str, most: float) -> bool:
        """Change the radius by a factor between 1.4 and `most`."""
        state = actor.state
        if most < 1.4:
            return False
        factor = self._uniform(1.4, most)
        radius = state.radius * (factor if action == "grow" else 1 / factor)
        if not self._fits(state.x, state.y, radius, (actor,)):
            return False
        if not self._add([Fact(action, (actor.thing,), start, end)]):
            return False
        actor.change(start, end, _State(state.x, state.y, radius, state.angle, state.rgb))
        return True

    def _rotate(self, actor: _Actor, start: float, end: float) -> bool:
        if actor.thing.shape not in _TURNABLE:
            return False
        if not self._add([Fact("rotate", (actor.thing,), start, end)]):
            return False
        state = actor.state
        turn = np.radians(self._uniform(60, 130)) * (end - start) * self.rng.choice((-1, 1))
        actor.change(start, end, _State(state.x, state.y, state.radius, state.angle + float(turn), state.rgb))
        return True

    def _blink(self, actor: _Actor, start: float, end: float) -> bool:
        # A whole number of blinks: the shape is back when the blinking is over.
        end = start + round((end - start) / BLINK_S) * BLINK_S
        if end > self.duration_s - _LAST_GAP_S or not self._add([Fact("blink", (actor.thing,), start, end)]):
            return False
        actor.blinks.append((start, end))
        actor.change(start, end, actor.state)
        return True

    def _recolour(self, actor: _Actor, start: float, end: float) -> bool:
        # Choose a colour that no shape has had, so that a name never means two shapes.
        had = {t.colour for a in self.actors for t in [a.thing]} | {t.colour for f in self.facts for t in f.things}
        free = [colour for colour in COLOURS if colour not in had]
        if not free:
            return False
        colour = str(self.rng.choice(free))
        if not self._add([Fact("recolour", (actor.thing,), start, end, colour)]):
            return False
        # The colour changes through grey, so that no third colour shows.
        state, rgb = actor.state, _rgb(colour, self.rng)
        grey = (sum(state.rgb) + sum(rgb)) / 6
        middle = (start + end) / 2
        for begin, finish, shade in ((start, middle, (grey, grey, grey)), (middle, end, rgb)):
            actor.change(begin, finish, _State(state.x, state.y, state.radius, state.angle, shade))
        actor.thing = Thing(colour, actor.thing.shape)
        return True

    def _act_together(self, action: str, actor: _Actor, length: float) -> bool:
        if action == "part":
            mates = [actor.partner] if actor.partner is not None else []
        else:
            mates = [a for a in self.actors if a is not actor and a.inside and a.partner is None]
        if not mates:
            return False
        mate = mates[int(self.rng.integers(len(mates)))]
        if mate is None:
            return False
        start = max(actor.free_s, mate.free_s) + self._uniform(_LAST_GAP_S, 1.0)
        end = start + length
        if end > self.duration_s - _LAST_GAP_S:
            return False
        both = (actor, mate)
        places = self._places(action, *both)
        if places is None:
            return False
        things = (actor.thing, mate.thing)
        facts = [Fact(action, things, start, end)]
        if action == "swap":  # on the way the two shapes meet and part
            facts += [Fact(other, things, start, end, implied=True) for other in ("meet", "part")]
        for one, (x, y) in zip(both, places, strict=True):
            for direction, (step_x, step_y) in DIRECTIONS.items():
                if (x - one.state.x) * step_x + (y - one.state.y) * step_y > 0.03:
                    facts.append(Fact("move", (one.thing,), start, end, direction, implied=True))
        if not self._add(facts):
            return False
        for one, (x, y) in zip(both, places, strict=True):
            one.change(start, end, _moved(one.state, x, y))
        actor.partner, mate.partner = (mate, actor) if action == "meet" else (None, None)
        return True

    def _places(self, action: str, a: _Actor, b: _Actor) -> list[tuple[float, float]] | None:
        """Targets of the two shapes; None if there is no room."""
        gap = np.array([b.state.x - a.state.x, b.state.y - a.state.y])
        distance = float(np.hypot(*gap))
        touching = 1.1 * (a.state.radius + b.state.radius)
        if action == "swap":
            if distance < _APART or not (
                self._fits(b.state.x, b.state.y, a.state.radius, (a, b))
                and self._fits(a.state.x, a.state.y, b.state.radius, (a, b))
            ):
                return None
            return [(b.state.x, b.state.y), (a.state.x, a.state.y)]
        if action == "meet":
            if distance < max(_APART, touching + 0.15):
                return None
            steps = [(distance - touching) / 2] * 2
            unit = gap / distance
        else:
            steps = [-self._uniform(0.12, 0.3) for _ in range(2)]
            unit = gap / max(distance, 1e-6)
        places = [
            (float(a.state.x + steps[0] * unit[0]), float(a.state.y + steps[0] * unit[1])),
            (float(b.state.x - steps[1] * unit[0]), float(b.state.y - steps[1] * unit[1])),
        ]
        fits = all(self._fits(*place, one.state.radius, (a, b)) for place, one in zip(places, (a, b), strict=True))
        return places if fits else None


def _moved(state: _State, x: float, y: float) -> _State:
    return _State(x, y, state.radius, state.angle, state.rgb)


def _rgb(colour: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """A shade of the colour."""
    hue, saturation, value = COLOURS[colour]
    hue, saturation, value = hue + rng.uniform(-4, 4), saturation * rng.uniform(0.9, 1), value * rng.uniform(0.9, 1)
    return colorsys.hsv_to_rgb(float(hue % 360) / 360, float(saturation), float(value))


def draw_scene(rng: np.random.Generator, allowed: Allowed) -> Scene:
    """Make a random scene.

    Args:
        rng: decides everything about the scene.
        allowed: which combinations of colour, form and action may happen.

    Returns:
        A scene with at least three facts that are not implied.
    """
    for _ in range(1000):
        stage = _Stage(rng, allowed)
        stage.play()
        if sum(not fact.implied for fact in stage.facts) >= 3:
            break
    else:
        raise InputError("allowed: expected a rule under which things can happen, got one that forbids nearly all")
    shade = rng.uniform(0.06, 0.2) if rng.random() < 0.5 else rng.uniform(0.82, 0.94)
    tracks = [Track(a.thing.shape, np.array(a.times), np.array(a.numbers), tuple(a.blinks)) for a in stage.actors]
    facts = sorted(stage.facts, key=lambda fact: (fact.start_s, fact.end_s))
    return Scene(stage.num_frames, (float(shade),) * 3, tuple(tracks), tuple(facts))
