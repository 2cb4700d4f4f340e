"""
Summarize what a GPU does in an update: kernels, gaps between them, and the driver's calls, from a trace of PyTorch's profiler.

A gap is a time between two kernels or copies in which neither a kernel nor a copy runs. The kernels of a CUDA graph are traced
one by one, but the driver is called only once for all of them.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from bench import print_table

#: Categories of the trace: work that runs on the GPU, and calls of the driver by the processor.
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
OF_DRIVER = ("cuda_runtime", "cuda_driver")
#: How the names of all calls of the driver begin; what the names of those that put work into the GPU's queue contain; and what
#: the names of those that wait for it contain.
DRIVER_CALLS = "cu"
LAUNCHES = ("LaunchKernel", "GraphLaunch")
WAITS = "Synchronize"
#: How many kernels and gaps are listed: those that take the most time.
LISTED = 20
#: Longer names are cut, because kernels of C++ templates have names of thousands of characters.
NAME_LENGTH = 160


class Share(TypedDict):
    """
    Store one row of a summary.

    :ivar name: name of a kernel, of a call of the driver, or of the two kernels around a gap
    :ivar count: how often it occurs per update
    :ivar microseconds: how long all of its occurrences take per update
    """

    name: str
    count: float
    microseconds: float


class TraceSummary(TypedDict):
    """
    Store a trace in numbers, all of them per update.

    :ivar kernels: how many kernels and copies run on the GPU
    :ivar launches: how many kernels and graphs the processor launches
    :ivar waits: how often the processor waits for the GPU, including once at the end of the trace
    :ivar busy_microseconds: how long a kernel or a copy runs
    :ivar idle_microseconds: how long neither runs, between the first and the last of the trace
    :ivar top_kernels: the kernels and copies that take the most time
    :ivar top_gaps: the longest gaps in total, by the kernels before and after
    :ivar driver_calls: all calls of the driver
    """

    kernels: float
    launches: float
    waits: float
    busy_microseconds: float
    idle_microseconds: float
    top_kernels: list[Share]
    top_gaps: list[Share]
    driver_calls: list[Share]


def read_trace(path: Path) -> list[dict[str, Any]]:
    """
    Read a trace.

    :param path: what ``torch.profiler.profile.export_chrome_trace`` wrote
    :return: the events of the trace
    """
    return json.loads(path.read_text())["traceEvents"]


def summarize(events: Iterable[Mapping[str, Any]], n_updates: int) -> TraceSummary:
    """
    Summarize a trace.

    :param events: the events of a trace, with times in microseconds
    :param n_updates: how many updates were traced
    :return: the trace in numbers, all zero if nothing ran on a GPU
    """
    complete = [event for event in events if event.get("ph") == "X"]
    on_device = sorted((event for event in complete if event.get("cat") in ON_DEVICE), key=lambda event: event["ts"])
    of_driver = [event for event in complete if event.get("cat") in OF_DRIVER]

    kernels, gaps, calls = (defaultdict[str, list[float]](list) for _ in range(3))
    for event in on_device:
        kernels[event["name"][:NAME_LENGTH]].append(event["dur"])
    for event in of_driver:
        calls[event["name"]].append(event["dur"])
    last, end = "", 0.0
    for event in on_device:
        if last and event["ts"] > end:
            gaps[f"{last[:NAME_LENGTH]} → {event['name'][:NAME_LENGTH]}"].append(event["ts"] - end)
        if event["ts"] + event["dur"] > end:  # otherwise it ran at the same time as the last, on another stream
            last, end = event["name"], event["ts"] + event["dur"]

    idle = sum(map(sum, gaps.values()))
    span = end - on_device[0]["ts"] if on_device else 0.0
    return TraceSummary(
        kernels=len(on_device) / n_updates,
        launches=_count(calls, LAUNCHES) / n_updates,
        waits=_count(calls, (WAITS,)) / n_updates,
        busy_microseconds=(span - idle) / n_updates,
        idle_microseconds=idle / n_updates,
        top_kernels=_shares(kernels, n_updates)[:LISTED],
        top_gaps=_shares(gaps, n_updates)[:LISTED],
        driver_calls=_shares(calls, n_updates),
    )


def _count(calls: Mapping[str, list[float]], parts: Iterable[str]) -> int:
    return sum(len(times) for name, times in calls.items() if any(part in name for part in parts))


def _shares(times: Mapping[str, list[float]], n_updates: int) -> list[Share]:
    shares = [
        Share(name=name, count=len(samples) / n_updates, microseconds=sum(samples) / n_updates)
        for name, samples in times.items()
    ]
    return sorted(shares, key=lambda share: -share["microseconds"])


def print_summary(title: str, summary: TraceSummary) -> None:
    """
    Print the tables of a summary.

    :param title: a line above the tables
    :param summary: what ``summarize`` returned
    """
    if not summary["kernels"]:
        print(f"\n{title}: nothing ran on a GPU.")
        return
    print(
        f"\n{title}, an update: {summary['kernels']:.1f} kernels and copies, {summary['launches']:.1f} launches, "
        f"{summary['waits']:.1f} waits; the GPU is busy for {summary['busy_microseconds']:.0f} µs, and idle for "
        f"{summary['idle_microseconds']:.0f} µs."
    )
    tables = {"kernel or copy": "top_kernels", "gap": "top_gaps", "driver's call": "driver_calls"}
    for header, key in tables.items():
        shares: list[Share] = summary[key]  # type: ignore[literal-required]
        rows = ([share["name"], f"{share['count']:.2f}", f"{share['microseconds']:.1f}"] for share in shares[:LISTED])
        print_table(f"{title}, an update:", [header, "count", "µs"], rows)
