"""Sentences about a scene, with synonyms and tenses; each sentence fits exactly one fact of the scene."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mmn_fast.demo.scenes import PAIR_ACTIONS, Fact, Scene, Thing

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "amber"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "cyan": ("cyan", "turquoise", "teal"),
    "blue": ("blue", "navy", "cobalt"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "fuchsia"),
}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "square": ("square", "box"),
    "circle": ("circle", "disc", "ball"),
    "triangle": ("triangle", "wedge"),
    "star": ("star", "asterisk"),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
}
ANY_SHAPE = ("shape", "thing", "object", "figure")


@dataclass(frozen=True)
class _Verb:
    """A verb phrase in all forms that sentences need; `rest` follows the verb."""

    base: str
    third: str
    ing: str
    past: str
    rest: str = ""


def _verb(forms: str, *rests: str) -> list[_Verb]:
    base, third, ing, past = forms.split()
    return [_Verb(base, third, ing, past, rest) for rest in rests or ("",)]


_GO = "move moves moving moved", "slide slides sliding slid", "drift drifts drifting drifted", "go goes going went"
_GET = "get gets getting got", "become becomes becoming became"


def _each(verbs: Iterable[str], *rests: str) -> list[_Verb]:
    return [verb for forms in verbs for verb in _verb(forms, *rests)]


_SIDEWAYS = ("to the {0}", "{0}", "towards the {0}", "{0}wards")
_MOVES: dict[str, list[_Verb]] = {
    "left": _each(_GO, *(rest.format("left") for rest in _SIDEWAYS)),
    "right": _each(_GO, *(rest.format("right") for rest in _SIDEWAYS)),
    "up": _each(_GO, "up", "upwards", "to the top")
    + _verb("rise rises rising rose")
    + _verb("climb climbs climbing climbed"),
    "down": _each(_GO, "down", "downwards", "to the bottom")
    + _verb("sink sinks sinking sank")
    + _verb("descend descends descending descended"),
}
_VERBS: dict[str, list[_Verb]] = {
    "enter": _verb("enter enters entering entered", "", "the scene", "the frame")
    + _verb("come comes coming came", "in", "into view", "into the frame")
    + _verb("appear appears appearing appeared"),
    "leave": _verb("leave leaves leaving left", "", "the scene", "the frame")
    + _verb("exit exits exiting exited", "", "the scene")
    + _verb("go goes going went", "away", "out of view", "out of the frame")
    + _verb("disappear disappears disappearing disappeared"),
    "grow": _verb("grow grows growing grew", "", "bigger", "larger")
    + _each(_GET, "bigger", "larger")
    + _verb("expand expands expanding expanded"),
    "shrink": _verb("shrink shrinks shrinking shrank")
    + _each(_GET, "smaller")
    + _verb("contract contracts contracting contracted"),
    "rotate": _verb("rotate rotates rotating rotated")
    + _verb("spin spins spinning spun", "", "around")
    + _verb("turn turns turning turned", "around")
    + _verb("twirl twirls twirling twirled"),
    "blink": _verb("blink blinks blinking blinked")
    + _verb("flash flashes flashing flashed")
    + _verb("flicker flickers flickering flickered")
    + _verb("go goes going went", "on and off"),
    "recolour": _verb("turn turns turning turned", "{0}")
    + _verb("become becomes becoming became", "{0}")
    + _verb("change changes changing changed", "to {0}", "colour to {0}", "into {0}"),
    "swap": _verb("swap swaps swapping swapped", "places", "positions")
    + _verb("trade trades trading traded", "places")
    + _verb("switch switches switching switched", "places", "positions")
    + _verb("exchange exchanges exchanging exchanged", "places"),
    "meet": _verb("meet meets meeting met")
    + _verb("come comes coming came", "together")
    + _verb("approach approaches approaching approached", "each other")
    + _verb("join joins joining joined", "each other"),
    "part": _verb("part parts parting parted")
    + _verb("separate separates separating separated")
    + _verb("move moves moving moved", "apart")
    + _verb("drift drifts drifting drifted", "apart")
    + _verb("back backs backing backed", "away from each other"),
}
_EDGES = {
    "left": ("from the left", "from the left side"),
    "right": ("from the right", "from the right side"),
    "up": ("from the top", "from above"),
    "down": ("from the bottom", "from below"),
}
_EXITS = {
    "left": ("to the left", "on the left side"),
    "right": ("to the right", "on the right side"),
    "up": ("at the top", "over the top"),
    "down": ("at the bottom", "through the bottom"),
}

# {a} is the actor, {b} the other shape of a pair; if both act together, {a} holds "{a} and {b}".
_FRAMES_ONE = (
    "{a} {third} {rest}",
    "{a} {third} {rest}",
    "{a} is {ing} {rest}",
    "{a} is {ing} {rest}",
    "{a} {past} {rest}",
    "when does {a} {base} {rest}",
    "find where {a} {third} {rest}",
    "the moment when {a} {third} {rest}",
)
_FRAMES_PAIR = (
    "{a} {base} {rest}",
    "{a} {base} {rest}",
    "{a} are {ing} {rest}",
    "{a} {past} {rest}",
    "when do {a} {base} {rest}",
    "find where {a} {base} {rest}",
    "the moment when {a} {base} {rest}",
)
_ARTICLES = ("the", "the", "a")


@dataclass(frozen=True)
class Claim:
    """The content of a sentence: an action of things that are named by colour, and by form unless the form is "".

    Attributes:
        action: the fact's action.
        things: the shapes that act; a pair is named in either order.
        detail: the direction, edge or colour in the sentence, "" for none.
    """

    action: str
    things: tuple[Thing, ...]
    detail: str = ""

    def fits(self, fact: Fact) -> bool:
        """Whether the sentence could mean the fact."""
        if self.action != fact.action or self.detail not in ("", fact.detail):
            return False
        return any(
            all(
                said.colour == thing.colour and said.shape in ("", thing.shape)
                for said, thing in zip(self.things, order, strict=True)
            )
            for order in itertools.permutations(fact.things)
        )


@dataclass(frozen=True)
class Sentence:
    """A sentence, its claim, and the one fact of its scene that the claim fits."""

    text: str
    claim: Claim
    fact: Fact


def say(fact: Fact, scene: Scene, rng: np.random.Generator) -> Sentence:
    """Put a fact into words that fit no other fact of the scene.

    Args:
        fact: a fact that is not implied.
        scene: its scene.
        rng: chooses the words.
    """
    things = fact.things if rng.random() < 0.5 else fact.things[::-1]
    detail = fact.detail
    if fact.action in ("enter", "leave") and rng.random() < 0.6:
        detail = ""
    brief = Claim(fact.action, tuple(Thing(t.colour, "" if rng.random() < 0.15 else t.shape) for t in things), detail)
    full = Claim(fact.action, things, fact.detail)
    for claim in (brief, Claim(fact.action, things, detail), full):
        if sum(claim.fits(other) for other in scene.facts) == 1:
            return Sentence(_words(claim, fact.detail, rng), claim, fact)
    raise AssertionError(f"no sentence means only {fact}")


def _choice(rng: np.random.Generator, items: tuple[str, ...] | list[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _words(claim: Claim, detail: str, rng: np.random.Generator) -> str:
    verbs = _MOVES[detail] if claim.action == "move" else _VERBS[claim.action]
    verb = verbs[int(rng.integers(len(verbs)))]
    rest = verb.rest
    if claim.action == "recolour":
        rest = rest.format(_choice(rng, COLOUR_WORDS[detail]))
    elif claim.action == "enter" and claim.detail:
        rest = f"{rest} {_choice(rng, _EDGES[claim.detail])}"
    elif claim.action == "leave" and claim.detail:
        rest = f"{rest} {_choice(rng, _EXITS[claim.detail])}"
    names = [_name(thing, rng) for thing in claim.things]
    frames = _FRAMES_PAIR if claim.action in PAIR_ACTIONS else _FRAMES_ONE
    frame = _choice(rng, frames)
    text = frame.format(
        a=" and ".join(names), base=verb.base, third=verb.third, ing=verb.ing, past=verb.past, rest=rest
    )
    return " ".join(text.split())


def _name(thing: Thing, rng: np.random.Generator) -> str:
    colour = _choice(rng, COLOUR_WORDS[thing.colour])
    shape = _choice(rng, SHAPE_WORDS[thing.shape] if thing.shape else ANY_SHAPE)
    article = _choice(rng, _ARTICLES)
    return f"{'an' if article == 'a' and colour[0] in 'aeiou' else article} {colour} {shape}"


def vocabulary() -> list[str]:
    """The lines of a BERT vocab.txt: every word of the sentences, and characters so that other words do not break."""
    phrases: list[str] = ["an", *_FRAMES_ONE, *_FRAMES_PAIR, *_ARTICLES, *ANY_SHAPE]
    for table in (COLOUR_WORDS, SHAPE_WORDS, _EDGES, _EXITS):
        phrases += itertools.chain.from_iterable(table.values())
    for verb in itertools.chain.from_iterable([*_MOVES.values(), *_VERBS.values()]):
        phrases += [verb.base, verb.third, verb.ing, verb.past, verb.rest]
    words = {word for phrase in phrases for word in re.sub(r"{\w*}", " ", phrase).split()}
    words.add("and")
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words |= set(characters) | set(".,?!'-")
    return [
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        *sorted(words),
        *(f"##{character}" for character in characters),
    ]
