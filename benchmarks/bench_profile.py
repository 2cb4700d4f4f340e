"""
Show where the time of a FlowRL update goes, with PyTorch's profiler.

    python benchmarks/bench_profile.py
    python benchmarks/bench_profile.py --device cuda --contenders "FlowRL float32 compiled" --architectures defaults

A profile covers many calls of ``train(gradient_steps=1, batch_size=256)``, with the networks of ``bench_update.py``,
17-dimensional observations, 6-dimensional actions, and one thread. Each generated kernel is profiled, which costs a few
percent; the time of an update without the profiler is given for comparison. The rows are:

- matrix products: those of the networks and their gradients
- generated kernels: LayerNorms, activations, losses, their gradients, and casts, if the update is compiled
- other kernels: PyTorch's own, for the same operations if the update is not compiled, and for copies
- Adam and Polyak averaging: everything inside their calls, including Python
- sampling: everything inside ``replay_buffer.sample``
- guards: ``torch.compile``'s checks that the compiled code is still valid
- calls: C++ code that calls the kernels and allocates their memory
- launches: on a GPU, the driver's calls that put kernels, graphs and copies into its queue
- waits: on a GPU, the driver's calls that wait for it
- Python: the rest of the elapsed time

All these are times of the processor. ``trace_summary.py`` shows what a GPU does at the same time.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench import (
    ARCHITECTURES,
    SETTINGS,
    WARM_UP,
    Architecture,
    IdleEnv,
    Record,
    add_contender_option,
    fill_replay_buffer,
    in_fresh_process,
    make_model,
    make_parser,
    parse,
    print_table,
    seconds_of,
    updates,
)
from torch.profiler import profile, record_function
from trace_summary import DRIVER_CALLS, WAITS, TraceSummary, print_summary, read_trace, summarize

from sb3_flowrl import update

#: Calls that have their own row, which includes everything inside them: the row by the name of the range in the profile.
RANGES = {"sample": "sampling", "polyak_average": "Polyak averaging", "Optimizer.step": "Adam"}
ROWS = [
    "matrix products",
    "generated kernels",
    "other kernels",
    "Adam",
    "Polyak averaging",
    "sampling",
    "guards",
    "calls",
    "launches",
    "waits",
    "Python",
]


def in_range(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """
    Mark all calls of a function in the profile.

    :param name: name of the range in the profile
    :param function: any function
    :return: the function, marked
    """

    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return function(*args, **kwargs)

    return marked


def row_of(event: Any) -> str:
    """
    Find the row of an event.

    :param event: an event of the profile
    :return: the row that the event's own time, without the events inside it, belongs to
    """
    ancestor = event
    while ancestor is not None:
        for name, row in RANGES.items():
            if ancestor.name.startswith(name):
                return row
        ancestor = ancestor.cpu_parent
    if event.name.removesuffix("_out").endswith("mm"):
        return "matrix products"
    if event.name.startswith("graph_"):
        return "generated kernels"
    if event.name.startswith("TorchDynamo"):
        return "guards"
    if event.name.startswith("## Call CompiledFxGraph"):
        return "calls"
    if event.name.startswith(DRIVER_CALLS):
        return "waits" if WAITS in event.name else "launches"
    return "other kernels" if event.name.startswith("aten::") else "Python"


def measure(name: str, architecture: Architecture, args: Namespace) -> dict[str, Any]:
    """
    Profile the updates of a contender.

    :param name: one of FlowRL's settings
    :param architecture: its networks
    :param args: the script's options
    :return: milliseconds of an update in each round, without the profiler, and by row with it; and a summary of the last
        round's trace
    """
    import torch._inductor.config as inductor

    inductor.cpp.enable_kernel_profile = True
    model: Any = make_model(name, IdleEnv(17, 6), architecture, buffer_size=args.buffer_size, device=args.device)
    fill_replay_buffer(model.replay_buffer)
    model.replay_buffer.sample = in_range("sample", model.replay_buffer.sample)
    update.polyak_average = in_range("polyak_average", update.polyak_average)
    work = updates(model, args.batch_size)
    work(WARM_UP)
    plain, rows = [], []
    for _ in range(args.rounds):
        plain.append(1e3 * seconds_of(work, args.updates) / args.updates)
        with profile() as profiler:  # of the processor, and of a GPU if there is one
            wall = 1e3 * seconds_of(work, args.updates) / args.updates
        milliseconds = dict.fromkeys(ROWS, 0.0)
        for event in profiler.events():
            milliseconds[row_of(event)] += event.self_cpu_time_total / 1e3 / args.updates
        milliseconds["Python"] = wall - sum(time for row, time in milliseconds.items() if row != "Python")
        rows.append(milliseconds)
    return dict(
        milliseconds=plain,
        rows={row: [milliseconds[row] for milliseconds in rows] for row in ROWS},
        trace=_summary(profiler, args.updates),
    )


def _summary(profiler: profile, n_updates: int) -> TraceSummary:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return summarize(read_trace(path), n_updates)


def main() -> None:
    """Run the benchmark with the options of the command line."""
    parser = make_parser(__file__, __doc__)
    add_contender_option(parser, SETTINGS)
    parser.set_defaults(contenders=["FlowRL bfloat16 compiled", "FlowRL float32 compiled"])
    parser.add_argument("--rounds", type=int, default=5, help="profiles of each contender")
    parser.add_argument("--updates", type=int, default=60, help="updates in each profile, a multiple of the policy delay")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=["paper", "256x2"])
    parser.add_argument("--device", default="cpu", help="torch's name of the device; the replay buffers stay on the host")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--buffer-size", type=int, default=100_000)
    args = parse(
        parser, rounds=2, updates=2, contenders=["FlowRL float32"], architectures=["256x2"], batch_size=16, buffer_size=1_000
    )
    record = Record(args)
    results = {}
    for architecture in args.architectures:
        for name in args.contenders:
            results[f"{name}, {architecture}"] = in_fresh_process(measure, name, ARCHITECTURES[architecture], args)
            record.write(results=results)  # keeps the results so far if a time limit ends the run
    print_profiles(results)
    for name, result in results.items():
        print_summary(name, result["trace"])


def print_profiles(results: dict[str, dict[str, Any]]) -> None:
    """
    Print the table of all profiles.

    :param results: what ``measure`` returned, by setting and networks
    """
    rows = [[row, *(f"{np.median(result['rows'][row]):.2f}" for result in results.values())] for row in ROWS]
    totals = {
        "all, profiled": [np.sum(list(result["rows"].values()), axis=0) for result in results.values()],
        "all, without the profiler": [result["milliseconds"] for result in results.values()],
    }
    for title, of_each in totals.items():
        rows.append([title, *(f"{np.median(total):.2f} ({min(total):.2f} – {max(total):.2f})" for total in of_each)])
    print_table("Milliseconds of an update, medians:", ["", *results], rows)


if __name__ == "__main__":
    main()
