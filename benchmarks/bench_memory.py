"""
Measure peak memory with a full replay buffer, and during updates.

    python benchmarks/bench_memory.py

The replay buffer holds a million transitions of HalfCheetah's sizes. FlowRL stores observations in float32. SB3's SAC stores
them in the environment's type, float64. The updates are eager or compiled.

Each contender has a fresh process, whose resident set is read. Peaks count from the start of the process. With torch.compile
they include the compiler.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from bench import (
    ARCHITECTURES,
    SETTINGS,
    IdleEnv,
    Record,
    add_contender_option,
    fill_replay_buffer,
    in_fresh_process,
    make_model,
    make_parser,
    parse,
    print_table,
    updates,
)

#: The contenders by name: a key of ``SETTINGS`` or ``PEERS``, and further arguments of the model.
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in SETTINGS},
    "SAC": ("SAC", {}),
}


def resident_megabytes() -> dict[str, float]:
    """
    Read the resident set of this process.

    :return: its size in MB, now and at its peak
    """
    # Not from getrusage: in a new process, its peak starts at the parent's memory
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) * 1024 / 1e6 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


def measure(name: str, args: Namespace) -> dict[str, Any]:
    """
    Measure the memory of a contender.

    :param name: the contender
    :param args: the script's options
    :return: the resident set after the imports, with an empty buffer, with a full buffer, and after the updates; and the bytes
        of one transition
    """
    start = resident_megabytes()
    key, arguments = CONTENDERS[name]
    env = IdleEnv(args.obs_dim, args.action_dim, np.float64)
    model = make_model(key, env, ARCHITECTURES["256x2"], buffer_size=args.buffer_size, **arguments)
    built = resident_megabytes()
    buffer = model.replay_buffer
    assert buffer is not None  # for mypy
    fill_replay_buffer(buffer)
    full = resident_megabytes()
    updates(model, batch_size=256)(args.updates)
    arrays = [array for array in vars(buffer).values() if isinstance(array, np.ndarray)]
    return dict(
        start=start,
        built=built,
        full_buffer=full,
        updated=resident_megabytes(),
        bytes_per_transition=sum(array.nbytes for array in arrays) / args.buffer_size,
    )


def main() -> None:
    """Run the benchmark with the options of the command line."""
    parser = make_parser(__file__, __doc__)
    add_contender_option(parser, CONTENDERS)
    parser.add_argument("--buffer-size", type=int, default=1_000_000)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--obs-dim", type=int, default=17)
    parser.add_argument("--action-dim", type=int, default=6)
    args = parse(parser, contenders=["FlowRL float32"], buffer_size=5_000, updates=2)
    record = Record(args)
    results: dict[str, dict[str, Any]] = {}
    for name in args.contenders:
        results[name] = in_fresh_process(measure, name, args)
        record.write(results=results)
    rows = []
    for name, memory in results.items():
        cells = [
            memory["start"]["now"],
            memory["built"]["now"],
            *(memory[when]["peak"] for when in ("full_buffer", "updated")),
        ]
        rows.append([name, f"{memory['bytes_per_transition']:.0f}", *(f"{cell:.0f}" for cell in cells)])
    title = f"Resident set in MB, {args.buffer_size} transitions, obs {args.obs_dim}, act {args.action_dim}, one thread"
    header = ["contender", "bytes a transition", "imports", "empty buffer", "full buffer, peak", "updates, peak"]
    print_table(title, header, rows)


if __name__ == "__main__":
    main()
