"""Latency: what is waited for, what is left out, and which figures are refused."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from Baseline_VGG.vgg_baseline import build_vgg11
from Model_Evaluation import latency
from Model_Evaluation.costs import count_executed_macs
from Model_Evaluation.latency import LatencyGuard, latency_rows, measure_latency, require_plausible
from utils.artifacts import INFERENCE_TIMES, read_table, write_table
from utils.errors import InputError

CPU = torch.device("cpu")
PEAK = 1e12  # FLOP/s of the device below
LAUNCH_S = 10e-6


class Device:
    """A device beside the clock's own process: it takes work at once, and is done with it at its peak's pace."""

    def __init__(self) -> None:
        self.now_s, self.free_s, self.num_waits = 0.0, 0.0, 0

    def clock(self) -> float:
        return self.now_s

    def submit(self, macs: float) -> None:
        """Hand over work that takes twice as long as the peak allows."""
        self.now_s += LAUNCH_S
        self.free_s = max(self.free_s, self.now_s) + 2 * 2 * macs / PEAK

    def wait(self, device: torch.device) -> None:
        self.num_waits += 1
        self.now_s = max(self.now_s, self.free_s)


def measure_on(device: Device, macs: float, *, warmup: int = 0, repetitions: int = 5) -> list[float]:
    return measure_latency(lambda: device.submit(macs), CPU, warmup=warmup, repetitions=repetitions, clock=device.clock)


def guard() -> LatencyGuard:
    return LatencyGuard(lambda: PEAK)


def test_a_device_that_is_waited_for_gives_its_own_time(monkeypatch):
    device = Device()
    monkeypatch.setattr(latency, "synchronise", device.wait)
    latencies = measure_on(device, macs=1e9)
    assert latencies == pytest.approx([4 + LAUNCH_S * 1e3] * 5)
    assert device.num_waits == 10, "before and after each call"
    assert guard().check("waited for", 1e9, latencies[0]) == pytest.approx(0.5, rel=0.01)


def test_without_waiting_the_figure_is_refused(monkeypatch):
    device = Device()
    monkeypatch.setattr(latency, "synchronise", lambda device: None)
    latencies = measure_on(device, macs=1e9)
    assert latencies == pytest.approx([LAUNCH_S * 1e3] * 5)
    with pytest.raises(InputError, match=r"^vgg: 1 GMac in 0.01 ms are 200 TFLOP/s, but the device reaches 1; synchro"):
        guard().check("vgg", 1e9, float(np.median(latencies)))


def test_waiting_before_keeps_earlier_work_out(monkeypatch):
    device = Device()
    device.submit(1e12)
    monkeypatch.setattr(latency, "synchronise", device.wait)
    assert measure_on(device, macs=1e9, repetitions=1) == pytest.approx([4 + LAUNCH_S * 1e3])


def test_twice_the_work_takes_twice_as_long(monkeypatch):
    device = Device()
    monkeypatch.setattr(latency, "synchronise", device.wait)
    once, twice = (np.median(measure_on(device, macs)) for macs in (1e9, 2e9))
    assert twice / once == pytest.approx(2, rel=0.01)


@pytest.mark.exhaustive
def test_twice_the_products_take_twice_as_long_on_this_machine():
    a = torch.randn(400, 400)

    def multiply(number: int) -> None:
        for _ in range(number):
            a @ a

    pairs = [
        [measure_latency(lambda n=n: multiply(n), CPU, warmup=1, repetitions=1)[0] for n in (10, 20)] for _ in range(41)
    ]
    assert 1.6 < np.median([twice / once for once, twice in pairs]) < 2.5


class Worker:
    """A thread that works while the caller goes on."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def submit(self) -> None:
        self.threads.append(threading.Thread(target=time.sleep, args=(0.1,)))
        self.threads[-1].start()

    def wait(self, device: torch.device) -> None:
        for thread in self.threads:
            thread.join()


@pytest.mark.parametrize("waits", [True, False])
def test_work_in_another_thread(monkeypatch, waits):
    worker = Worker()
    monkeypatch.setattr(latency, "synchronise", worker.wait if waits else lambda device: None)
    latencies = measure_latency(worker.submit, CPU, warmup=0, repetitions=3)
    worker.wait(CPU)
    macs = 0.5 * PEAK * 0.05  # 50 ms at the peak
    if waits:
        assert min(latencies) >= 100
        assert guard().check("thread", macs, float(np.median(latencies))) <= 0.5
    else:
        with pytest.raises(InputError, match="thread: 25 GMac in"):
            guard().check("thread", macs, float(np.median(latencies)))


def test_slow_first_calls_are_run_and_left_out(monkeypatch):
    device = Device()
    monkeypatch.setattr(latency, "synchronise", device.wait)
    work = iter([1e12, 5e11, 1e11, 1e9, 1e9, 2e9])
    latencies = measure_latency(lambda: device.submit(next(work)), CPU, warmup=3, repetitions=3, clock=device.clock)
    assert latencies == pytest.approx([4 + LAUNCH_S * 1e3] * 2 + [8 + LAUNCH_S * 1e3])
    assert list(work) == []


def test_calls_need_no_gradients():
    layer, modes = nn.Linear(2, 2), []
    measure_latency(lambda: modes.append(layer(torch.ones(1, 2)).requires_grad), CPU, warmup=1, repetitions=1)
    assert modes == [False, False]


def test_rows_are_the_tables(tmp_path):
    rows = latency_rows("m", "fp32", "cpu (1 threads)", 8, [1.5, 2.5])
    write_table(rows, tmp_path / "inference_times.csv", INFERENCE_TIMES)
    table = read_table(tmp_path / "inference_times.csv", INFERENCE_TIMES)
    assert table[["batch_size", "repetition", "batch_latency_ms"]].to_numpy().tolist() == [[8, 1, 1.5], [8, 2, 2.5]]


# ---------------------------------------------------------------------------------------------------------------------
# What is believed


@pytest.mark.parametrize("peak", [12.74e12, 25.5e12], ids=["fp32", "tensor cores, fp32 sums"])
@pytest.mark.parametrize(("gmac", "latency_ms"), [(7.654, 0.375), (67.637, 0.513)], ids=["2-D", "3-D"])
def test_the_published_latencies_are_refused_on_their_card(gmac, latency_ms, peak):
    """An RTX 3060 at its boost clock: 3,584 cores x 2 x 1.777 GHz, and twice that in its tensor cores."""
    with pytest.raises(InputError, match=f"published: {gmac:.4g} GMac in {latency_ms} ms are .*; synchronise the dev"):
        require_plausible(latency_ms, gmac * 1e9, peak, name="published")


def test_the_tolerance_is_where_it_says():
    assert require_plausible(2.0, 1e9, PEAK, name="m", tolerance=1) == pytest.approx(1)
    assert require_plausible(2 / 1.099, 1e9, PEAK, name="m") == pytest.approx(1.099)
    for latency_ms, tolerance in ((2 / 1.101, 1.1), (2 / 1.001, 1), (0.0, 1.1)):
        with pytest.raises(InputError, match="the device reaches 1;"):
            require_plausible(latency_ms, 1e9, PEAK, name="m", tolerance=tolerance)


def test_a_busy_moment_refuses_nothing_and_a_peak_is_measured_once():
    peaks = iter([0.1 * PEAK, 0.4 * PEAK, PEAK, 0.2 * PEAK])
    guard = LatencyGuard(lambda: next(peaks))
    assert guard.check("m", 1e9, 2.5) == pytest.approx(0.8)
    assert guard.check("m", 1e9, 2.5) == pytest.approx(0.8)
    assert list(peaks) == [0.2 * PEAK]


def test_a_real_network_passes_and_its_launch_alone_does_not():
    network = build_vgg11(2, classifier_width=16).eval()
    guard = LatencyGuard(lambda: latency.measure_peak(CPU, torch.float32))
    macs, images = count_executed_macs(network, (3, 64, 64)), torch.zeros(1, 3, 64, 64)
    real = np.median(measure_latency(lambda: network(images), CPU, warmup=1, repetitions=5))
    assert 0.005 < guard.check("real", macs, real) < 1.1
    launch = np.median(measure_latency(lambda: None, CPU, warmup=1, repetitions=5))
    with pytest.raises(InputError, match=r"launch: .* synchronise the device"):
        guard.check("launch", macs, launch)


# ---------------------------------------------------------------------------------------------------------------------
# What the device reaches


@pytest.fixture
def timed(monkeypatch) -> list[int]:
    """Counts calls and lets none take long: each size's samples last 1, 2, 3 ... ms."""
    calls: list[int] = []

    def pretend(classify, device, *, warmup, repetitions):
        classify()
        calls.append(repetitions)
        return [len(calls) + 5.0] * (repetitions - 1) + [float(len(calls))]

    monkeypatch.setattr(latency, "measure_latency", pretend)
    return calls


def test_the_peak_is_the_best_of_all_sizes_and_samples(timed):
    assert latency.measure_matmul_peak(CPU, torch.float32, sizes=(10, 30, 20), samples=8) == 2 * 30**3 / 2e-3
    assert timed == [8, 8, 8]


def test_the_faster_of_product_and_convolution_is_the_peak(timed, monkeypatch):
    monkeypatch.setattr(latency, "_PEAK_BUDGET_S", 0.0)  # the smallest product alone, in 1 ms
    batch, channels, side = latency._CONV["cpu"]
    conv = 2 * batch * side**2 * channels**2 * 9
    assert latency.measure_peak(CPU, torch.float32) == max(2 * 512**3 / 1e-3, conv / 2e-3) == conv / 2e-3
    monkeypatch.setitem(latency._CONV, "cpu", (4, 64, 28))
    timed.clear()
    assert latency.measure_peak(CPU, torch.float32) == 2 * 512**3 / 1e-3


def test_products_may_round_as_convolutions_do(monkeypatch):
    before = torch.backends.cuda.matmul.allow_tf32
    for allowed in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        with latency._products_like_convolutions(torch.device("cuda")):
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.backends.cuda.matmul.allow_tf32 is before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_quick_peak_is_quick_and_near_the_thorough_one(dtype):
    started_s = time.perf_counter()
    quick = latency.measure_peak(CPU, dtype)
    if dtype is torch.float32:  # emulated in some CPUs
        assert time.perf_counter() - started_s < 5, "0.5 s on an idle core"
    assert quick > 0.2 * latency.measure_matmul_peak(CPU, dtype, sizes=(1024,), samples=8)
