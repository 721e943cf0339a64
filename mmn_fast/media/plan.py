"""Decides, packet by packet, what a decoder may leave out without changing any wanted frame.

A packet is compressed; which frame is shown until when follows from the time stamps of the packets alone. A frame that
no wanted time falls on need not be decoded if no other frame refers to it, and a whole group of pictures (a key frame
and what follows it) need not be decoded if none of its frames is wanted. The plan looks ahead for as many packets as
the decision takes. It holds compressed packets only, at most `_MOST_PACKETS` of them and `_MOST_BYTES`.

Two facts bound the look ahead: decoding time stamps ascend, and no packet is shown before it is decoded. So a packet
still to come is never shown before the latest decoding time stamp.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import islice
from typing import Any

_MOST_PACKETS = 600  # 20 s at 30 frames per second; x264's longest group of pictures has 250
_MOST_BYTES = 2**26


class Action(Enum):
    """What the decoder does with a packet."""

    DECODE = "decode"
    IF_REFERENCE = "decode it if other frames refer to it"
    RESTART = "finish the frames before, then decode it as a fresh start"
    DROP = "leave it out"


class OddStampsError(Exception):
    """The plan cannot be kept: the file must be decoded from its start without leaving anything out."""


class _Held:
    """A packet that waits for its decision; `needed` is None as long as it is open."""

    __slots__ = ("needed", "packet", "stamp")

    def __init__(self, packet: Any, needed: bool | None) -> None:
        self.packet = packet
        self.stamp: int = packet.pts
        self.needed = needed


class _Group:
    """A key packet and the packets up to the next key packet, in the order of decoding."""

    def __init__(self, needed: bool | None, key_stamp: int | None) -> None:
        self.needed = needed
        self.key_stamp = key_stamp
        self.packets: deque[_Held] = deque()
        self.num_unneeded = 0  # packets at the front that are known not to be needed
        self.fresh = False  # the group before was left out

    def is_leading(self, held: _Held) -> bool:
        """Whether a packet is shown before its group's key packet: it may refer to the group before."""
        return self.key_stamp is not None and held.stamp < self.key_stamp


class Plan:
    """Packets in, packets with their actions out.

    Attributes:
        skipped: whether any packet was not decoded in full.
    """

    def __init__(self, *, frames: bool, groups: bool, starts: Callable[[bytes], bool], longest_ticks: int) -> None:
        """Start without wanted times: everything is decoded until `begin`.

        Args:
            frames: frames that no frame refers to may be left out.
            groups: groups of pictures may be left out.
            starts: whether the decoder may start afresh at a key packet, by its bytes.
            longest_ticks: longest distance of two time stamps that is no jump.
        """
        self.skipped = False
        self._frames, self._groups_too, self._starts, self._longest = frames, groups, starts, longest_ticks
        self._on = frames or groups
        self._wanted: Callable[[int, int], bool] | None = None
        self._origin = 0
        self._shown: list[int] = []  # stamps of frames, ascending
        self._latest: int | None = None  # the latest decoding time stamp
        self._groups: deque[_Group] = deque()
        self._num_held = self._num_bytes = 0
        self._gap = False  # the packet before was left out together with its group
        self._ended = False

    def begin(self, origin: int | None, wanted: Callable[[int, int], bool]) -> None:
        """Start to leave packets out.

        Args:
            origin: the first frame's time stamp.
            wanted: whether a wanted time t is in start <= t < end; takes the two time stamps.
        """
        if origin is None:
            self._on = False
        self._origin, self._wanted = origin or 0, wanted
        self._groups.append(_Group(True, None))  # the decoder is in the middle of it

    def put(self, packet: Any) -> Iterator[tuple[Any, Action]]:
        """Take the next packet in the order of decoding; yield packets whose actions are decided.

        Raises:
            OddStampsError: packets were left out on the strength of time stamps that turn out to be unreliable.
        """
        if self._on and not self._note(packet):
            if self.skipped:
                raise OddStampsError
            self._on = False
            yield from self._all_held()
        if not self._on or self._wanted is None:
            yield packet, Action.DECODE
            return
        if packet.is_keyframe and self._groups_too and self._starts(bytes(packet)):
            self._groups.append(_Group(None, packet.pts))
        # A packet of an edit list that is decoded but never shown is needed only by others.
        held = _Held(packet, False if packet.is_discard or packet.pts < self._origin else None)
        self._groups[-1].packets.append(held)
        self._num_held += 1
        self._num_bytes += packet.size
        yield from self._decided()

    def finish(self) -> Iterator[tuple[Any, Action]]:
        """Yield the packets that are left, after the last packet."""
        self._ended = True
        if self._on and self._wanted is not None:
            yield from self._decided()

    def close(self) -> None:
        """Forget the packets that are held and who wants them."""
        self._groups.clear()
        self._wanted = None

    def lost(self, stamp: int, at: Callable[[int], bool]) -> bool:
        """Whether the decoder dropped a frame that it had to give.

        Args:
            stamp: the time stamp of the frame that is about to be given for a wanted time.
            at: whether a time stamp is not later than the wanted time.
        """
        if not self.skipped:
            return False
        number = bisect_right(self._shown, stamp)
        return number < len(self._shown) and at(self._shown[number])

    def forget(self, stamp: int | None) -> None:
        """Forget the time stamps before that of the frame that is shown now."""
        if stamp is not None:
            del self._shown[: bisect_left(self._shown, stamp)]

    def _note(self, packet: Any) -> bool:
        """Note a packet's time stamps; False if they cannot be relied on."""
        stamp, decoding = packet.pts, packet.dts
        if stamp is None or (decoding is None and self._latest is not None):
            return False
        if decoding is not None:
            if not decoding <= stamp <= decoding + self._longest:
                return False
            if self._latest is not None and not self._latest <= decoding <= self._latest + self._longest:
                return False
            self._latest = decoding
        if not packet.is_discard:
            number = bisect_left(self._shown, stamp)
            if number < len(self._shown) and self._shown[number] == stamp:
                return False
            self._shown.insert(number, stamp)
        return True

    def _all_held(self) -> Iterator[tuple[Any, Action]]:
        for group in self._groups:
            yield from ((held.packet, Action.DECODE) for held in group.packets)
        self._groups.clear()

    def _decided(self) -> Iterator[tuple[Any, Action]]:
        while self._groups:
            group = self._groups[0]
            closed = len(self._groups) > 1
            if group.needed is None:
                group.needed = self._group_is_needed(group, self._groups[1] if closed else None)
            if group.needed is None:
                if self._num_held <= _MOST_PACKETS and self._num_bytes <= _MOST_BYTES:
                    return
                group.needed = True
            if group.needed:
                yield from self._packets_of(group)
                if group.packets or not closed:
                    return
            else:
                yield from self._left_out(group)
            self._groups.popleft()

    def _packets_of(self, group: _Group) -> Iterator[tuple[Any, Action]]:
        """Yield the decided packets at the front of a group that is decoded."""
        while group.packets:
            held = group.packets[0]
            if self._frames and held.needed is None:
                held.needed = self._is_needed(held)
                if held.needed is None and self._num_held <= _MOST_PACKETS and self._num_bytes <= _MOST_BYTES:
                    return
            self._release(group)
            if self._gap:
                self._gap, group.fresh = False, True
                yield held.packet, Action.RESTART
            elif group.fresh and group.is_leading(held):
                yield held.packet, Action.DROP  # what it refers to was left out
            elif self._frames and held.needed is False and not held.packet.is_keyframe:
                self.skipped = True
                yield held.packet, Action.IF_REFERENCE
            else:
                yield held.packet, Action.DECODE

    def _left_out(self, group: _Group) -> Iterator[tuple[Any, Action]]:
        self.skipped = self._gap = True
        while group.packets:
            held = self._release(group)
            number = bisect_left(self._shown, held.stamp)
            if number < len(self._shown) and self._shown[number] == held.stamp:
                del self._shown[number]
            yield held.packet, Action.DROP

    def _release(self, group: _Group) -> _Held:
        held = group.packets.popleft()
        self._num_held -= 1
        self._num_bytes -= held.packet.size
        return held

    def _group_is_needed(self, group: _Group, following: _Group | None) -> bool | None:
        """Whether a group must be decoded; None if packets to come decide it."""
        leading = [held for held in following.packets if following.is_leading(held)] if following else []
        undecided = [*islice(group.packets, group.num_unneeded, None), *leading]
        for held in undecided:
            if held.needed is None:
                held.needed = self._is_needed(held)
            if held.needed:
                return True
        for held in islice(group.packets, group.num_unneeded, None):
            if held.needed is None:
                break
            group.num_unneeded += 1
        if self._ended:
            return False
        if following is None or any(held.needed is None for held in undecided):
            return None
        complete = self._latest is not None and self._latest >= (following.key_stamp or 0)
        return False if complete else None

    def _is_needed(self, held: _Held) -> bool | None:
        """Whether a wanted time falls on a frame; None if packets to come decide it."""
        assert self._wanted is not None
        number = bisect_right(self._shown, held.stamp)
        following = self._shown[number] if number < len(self._shown) else None
        if following is not None and not self._wanted(held.stamp, following):
            return False
        if self._ended:
            return True  # the last frame too: it has the end of the video
        if self._latest is None:
            return None
        known = self._latest if following is None else min(following, self._latest)
        return True if known > held.stamp and self._wanted(held.stamp, known) else None
