"""Times of GPU work do not include launches; a double of the device has kernels of known durations."""

from __future__ import annotations

import pytest

from mmn_fast.kernels.gpu import clock
from mmn_fast.kernels.gpu.clock import DeviceClock, Timing
from tests.gpu_clock_double import Device

LAUNCHES_MS = (0.0, 0.010, 0.100)


def _around_one_call(device: Device, milliseconds: float) -> float:
    """Measure one call on an idle device with one pair of events, in ms."""
    first, last = device.Event(enable_timing=True), device.Event(enable_timing=True)
    first.record()
    device.kernel(milliseconds)()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)


def _clock(device: Device) -> DeviceClock:
    return DeviceClock(device, device.now)


@pytest.mark.parametrize("milliseconds", [0.002, 0.05, 3.0])
def test_the_time_is_the_kernels_whatever_a_launch_takes(milliseconds: float) -> None:
    for launch_ms in LAUNCHES_MS:
        for host_ms in (0.001, 0.030):
            device = Device(launch_ms, host_ms)
            timing = _clock(device).times([device.kernel(milliseconds)])
            assert timing.milliseconds == pytest.approx([milliseconds] * len(timing.milliseconds), rel=1e-6)
            assert timing.clock == "device"


def test_one_pair_of_events_around_one_call_measures_its_launches() -> None:
    device = Device(0.010, 0.006)
    assert _around_one_call(device, 0.002) == pytest.approx(0.012)  # six times the kernel's time
    eight_layers = sum(_around_one_call(device, 0.020) for _ in range(8))
    assert eight_layers == pytest.approx(8 * 0.026)
    assert _around_one_call(device, 8 * 0.020) == pytest.approx(0.166)  # the whole seems 25 % faster than its parts
    assert _clock(device).times([device.kernel(0.160)]).median_ms == pytest.approx(0.160)


def test_a_sample_spans_many_launches_and_its_inputs_take_turns() -> None:
    device = Device()
    timing = _clock(device).times([device.kernel(0.002, name) for name in "abcd"])
    assert timing.calls % 4 == 0
    assert timing.calls * 0.002 >= 20 * device.launch_ms
    counted = device.log[-timing.calls :]
    assert {name: counted.count(name) for name in "abcd"} == dict.fromkeys("abcd", timing.calls // 4)
    assert device.log[:8] == list("abcdabcd")
    assert len(timing.milliseconds) == 30


def test_long_work_is_timed_call_by_call_and_at_least_once() -> None:
    device = Device()
    timing = _clock(device).times([device.kernel(ms, str(ms)) for ms in (100.0, 110.0)])
    assert timing.calls == 1
    assert {round(ms, 6) for ms in timing.milliseconds} == {100.0, 110.0}
    assert 3 <= len(timing.milliseconds) <= 5  # calls in half a second, without the warm-up
    assert _clock(device).times([device.kernel(2000.0)]).milliseconds == pytest.approx([2000.0])


def test_a_host_that_queues_slowly_gets_a_longer_sleep() -> None:
    device = Device(host_ms=2.0)  # like Python with many small kernels; longer than the first sleep
    timing = _clock(device).times([device.kernel(0.05)])
    assert (timing.clock, timing.median_ms) == ("device", pytest.approx(0.05))


def test_times_of_work_that_waits_for_the_device_are_marked_as_including_launches() -> None:
    device = Device()
    timing = _clock(device).times([device.waiting(0.05)])
    assert timing.clock == "device, with launches"
    assert timing.median_ms > 0.05
    assert device.now_ms < 2000  # ms: the number of attempts, and so of sleeps, is limited


def test_a_full_queue_makes_the_host_wait_and_is_not_taken_for_a_busy_device() -> None:
    device = Device(queue_length=16)
    timing = _clock(device).times([device.kernel(0.002)])
    exact = timing.median_ms == pytest.approx(0.002)
    assert exact == (timing.clock == "device")


def test_layers_are_timed_in_their_order_and_make_up_the_whole() -> None:
    for launch_ms in LAUNCHES_MS:
        device = Device(launch_ms)
        layers = {"a": 0.010, "b": 0.030, "c": 0.020}
        found = _clock(device).layers_ms([device.kernel(ms, name) for name, ms in layers.items()], 0.120)
        assert found == pytest.approx([0.020, 0.060, 0.040])
        assert device.log[:6] == list("abcabc")


def test_a_whole_stack_is_replayed_from_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()

    class Recording:
        replay = staticmethod(device.kernel(0.5, "replayed"))

    monkeypatch.setattr(clock, "record", lambda queue: (queue(), Recording())[1])
    assert _clock(device).whole_ms(device.kernel(9.0, "queued")) == pytest.approx(0.5)
    assert device.log[:2] == ["queued", "queued"]  # compiled, then recorded
    assert set(device.log[2:]) == {"replayed"}


def test_the_median_is_that_of_the_samples() -> None:
    assert Timing([3.0, 1.0, 2.0]).median_ms == 2.0
