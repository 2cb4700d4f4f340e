"""
Measure updates per second, and how far FlowRL is from what the machine could do.

    python benchmarks/bench_update.py

The contenders are FlowRL in each of its settings, SB3's SAC and TD3, sb3_contrib's TQC and CrossQ, and a plain transcription
of FlowRL's equations. A unit is one update of a call ``train(gradient_steps=1, batch_size=256)``, as ``learn()`` makes it, on
a full replay buffer of float32 observations. ``--gradient-steps`` makes calls of several updates, with a table for each
number.

There are four architectures:

- "paper": the authors' networks, 512 wide, with their arguments. The peers have three hidden layers of 512.
- "table1": FlowRL with the paper's equations. All have the ``net_arch`` of the paper's Table 1: two hidden layers of 512 in
  the actor, three in the critics.
- "256x2": FlowRL with the paper's equations. All have ``[256, 256]``.
- "defaults": all, including FlowRL, have ``[256, 256]`` and the defaults of their constructors.

The transcription computes the paper's equations in all of them.

The roofline is measured in turns with the contenders. It is the sum of two times. The first is the time of the update's matrix
products at the rate of one product of batch x width x width. They are counted by torch's FlopCounterMode on the eager update.
The second is the time to move the bytes of Adam (reads p, g, m, v; writes p, m, v) and of Polyak averaging (reads two, writes
one) at the rate of a large copy, which reads and writes each byte once. Everything else counts as free: activations,
LayerNorms, intermediate gradients, sampling, Python.

The bound is not strict for networks of 256x2: they fit into the cache, which is faster than the copy. On a GPU the products of
one update are too small to fill the device, so the bound only holds for updates that run one after another.
"""

import math
import statistics
import tempfile
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch as th
from bench import (
    ARCHITECTURES,
    COMPILED,
    EAGER,
    PEERS,
    SETTINGS,
    SPREAD_HEADER,
    UPDATE_CYCLE,
    Architecture,
    IdleEnv,
    Record,
    Work,
    add_contender_option,
    add_timing_options,
    fastest,
    fill_replay_buffer,
    in_fresh_process,
    make_model,
    make_parser,
    parse,
    print_rates,
    print_ratios,
    print_table,
    ratios,
    seconds_of,
    spread,
    time_in_turns,
    updates,
)
from torch.utils.flop_counter import FlopCounterMode
from transcription import Transcription

from sb3_flowrl.buffers import RecencyReplayBuffer

#: The transcriptions by name, and whether they run under bfloat16 autocast.
TRANSCRIPTIONS = {"transcription": False, "transcription bfloat16": True}
#: FlowRL's precisions, with the dtype of their matrix products and torch's precision of float32 products.
PRODUCTS = {
    "float32": (th.float32, "highest"),
    "float32_fast": (th.float32, "medium"),
    "bfloat16": (th.bfloat16, "highest"),
}
#: Size of the copy that measures the speed of the memory.
COPY_BYTES = 2**28
#: The setting of FlowRL whose matrix products are counted.
FLOWRL = EAGER[0]
#: Stands for FlowRL's setting with the highest median.
FASTEST = "fastest"
#: The ratios to print: numerator and denominator.
RATIOS = [
    (FASTEST, "SAC"),
    ("FlowRL float32 compiled", "SAC"),
    ("FlowRL float32_fast compiled", "SAC"),
    (FASTEST, "TD3"),
    ("FlowRL float32_fast compiled", "transcription"),
    ("FlowRL bfloat16 compiled", "transcription bfloat16"),
]


def make_contender(name: str, architecture: Architecture, args: Namespace) -> Any:
    """
    Make a contender.

    :param name: the contender
    :param architecture: its networks
    :param args: the script's options
    :return: something with a ``train`` and a full replay buffer
    """
    env = IdleEnv(args.obs_dim, args.action_dim)
    if name not in TRANSCRIPTIONS:
        model = make_model(name, env, architecture, buffer_size=args.buffer_size, device=args.device)
        fill_replay_buffer(model.replay_buffer)  # type: ignore[arg-type]
        return model
    buffer = RecencyReplayBuffer(args.buffer_size, env.observation_space, env.action_space, device=args.device)
    fill_replay_buffer(buffer)
    return Transcription(buffer, architecture.flowrl_net_arch(), architecture.flowrl == "authors", TRANSCRIPTIONS[name])


def gigaflops_of_updates(model: Any, batch_size: int) -> list[float]:
    """
    Count the matrix products of updates.

    :param model: a contender that runs eagerly
    :param batch_size: samples in each update
    :return: GFLOP of the matrix products that each update of a cycle calls
    """
    counts = []
    for _ in range(UPDATE_CYCLE):
        with FlopCounterMode(display=False) as counter:
            model.train(gradient_steps=1, batch_size=batch_size)
        counts.append(counter.get_total_flops() / 1e9)
    return counts


def bytes_of_updates(model: Any) -> dict[str, float]:
    """
    Count the bytes that an update must move.

    :param model: a FlowRL model
    :return: bytes of Adam and of Polyak averaging, per update on average over the policy delay; and the number of parameters
    """
    critic, actor, behavior = (
        sum(parameter.numel() for network in networks for parameter in network.parameters())
        for networks in ([model.critic], [model.actor], [model.behavior_critic, model.behavior_value])
    )
    averaged = sum(
        parameter.numel()
        for network, *_ in model.policy.averages(model.tau, model.actor_tau)
        for parameter in network.parameters()
    )
    behavior_delay = model.policy_delay if model.delay_behavior else 1
    element = 4  # master weights and moments are float32 at every precision
    return dict(
        parameters=critic + actor + behavior,
        adam=7 * element * (critic + actor / model.policy_delay + behavior / behavior_delay),
        polyak=3 * element * averaged / model.policy_delay,
    )


def product(batch_size: int, width: int, device: str, dtype: th.dtype, precision: str) -> Work:
    """
    Return the work of a matrix product.

    :param batch_size: rows of the left matrix
    :param width: its columns, and the rows and columns of the right matrix
    :param device: where the matrices are
    :param dtype: their type
    :param precision: precision of float32, see ``torch.set_float32_matmul_precision``
    :return: a function that multiplies them the given number of times
    """
    left, right = (th.randn(rows, width, device=device).to(dtype) for rows in (batch_size, width))
    out = th.empty(batch_size, width, dtype=dtype, device=device)

    def work(calls: int) -> None:
        before = th.get_float32_matmul_precision()
        th.set_float32_matmul_precision(precision)
        for _ in range(calls):
            th.mm(left, right, out=out)
        th.set_float32_matmul_precision(before)

    return work


def copy(device: str) -> Work:
    """
    Return the work of a large copy.

    :param device: the device of both tensors
    :return: a function that copies ``COPY_BYTES`` the given number of times
    """
    source = th.ones(COPY_BYTES, dtype=th.uint8, device=device)
    target = source.clone()

    def work(calls: int) -> None:
        for _ in range(calls):
            target.copy_(source)

    return work


def measure(architecture: Architecture, args: Namespace) -> list[dict[str, Any]]:
    """
    Time all contenders and what the roofline needs.

    :param architecture: the networks
    :param args: the script's options
    :return: all samples and counts, for each number of gradient steps. The models are the same for all, so each is compiled
        once
    """
    models = {name: make_contender(name, architecture, args) for name in args.contenders}
    flowrl = models.get(FLOWRL) or make_contender(FLOWRL, architecture, args)
    counted = {FLOWRL: flowrl, **{name: model for name, model in models.items() if name not in SETTINGS}}
    gigaflops = {name: gigaflops_of_updates(model, args.batch_size) for name, model in counted.items()}

    machine: dict[str, Work] = {
        f"product {name}": product(args.batch_size, architecture.width, args.device, *PRODUCTS[name]) for name in PRODUCTS
    }
    machine["copy"] = copy(args.device)
    product_gigaflop = 2 * args.batch_size * architecture.width**2 / 1e9
    results = []
    for steps in args.gradient_steps:
        contenders = {name: updates(model, args.batch_size, steps) for name, model in models.items()}
        calls = UPDATE_CYCLE // math.gcd(UPDATE_CYCLE, steps)
        rates = time_in_turns({**machine, **contenders}, args.rounds, args.seconds, calls)
        result = dict(
            gradient_steps=steps,
            updates_per_second={name: [steps * rate for rate in rates[name]] for name in contenders},
            product_gigaflops_per_second={
                name: [product_gigaflop * rate for rate in rates[f"product {name}"]] for name in PRODUCTS
            },
            copy_bytes_per_second=[2 * COPY_BYTES * rate for rate in rates["copy"]],
            gigaflops_of_updates=gigaflops,
            bytes_of_updates=bytes_of_updates(flowrl),
        )
        results.append(result)
    return results


def first_updates(name: str, architecture: Architecture, args: Namespace) -> list[float]:
    """
    Time the first updates of a contender in this process.

    :param name: the contender
    :param architecture: its networks
    :param args: the script's options
    :return: seconds of each of the first calls of ``train``
    """
    work = updates(make_contender(name, architecture, args), args.batch_size)
    return [seconds_of(work, 1) for _ in range(12)]


def cold_starts(architecture: Architecture, args: Namespace) -> dict[str, dict[str, list[float]]]:
    """
    Time the first updates of all compiled settings.

    :param architecture: the networks
    :param args: the script's options
    :return: seconds of the first updates of each setting, with an empty compiler cache, and with the cache that this first run
        left
    """
    samples: dict[str, dict[str, list[float]]] = {}
    for name in (name for name in COMPILED if name in args.contenders):
        with tempfile.TemporaryDirectory() as folder:
            samples[name] = {
                cache: in_fresh_process(
                    first_updates,
                    name,
                    architecture,
                    args,
                    threads=args.threads[0],
                    environment=dict(TORCHINDUCTOR_CACHE_DIR=folder),
                )
                for cache in ("empty cache", "warm cache")
            }
    return samples


def rooflines(measured: dict[str, Any]) -> dict[str, list[float]]:
    """
    Compute the rooflines.

    :param measured: what ``measure`` returned
    :return: for each precision, updates per second in each round, if the processor only computed the matrix products and moved
        the bytes that it must
    """
    gigaflop = statistics.mean(measured["gigaflops_of_updates"][FLOWRL])
    moved = measured["bytes_of_updates"]["adam"] + measured["bytes_of_updates"]["polyak"]
    return {
        name: [
            1 / (gigaflop / rate + moved / speed) for rate, speed in zip(rates, measured["copy_bytes_per_second"], strict=True)
        ]
        for name, rates in measured["product_gigaflops_per_second"].items()
    }


def asked_ratios(rates: dict[str, list[float]], bound: list[float]) -> dict[str, list[float]]:
    """
    Compute the ratios in ``RATIOS``, and the ratio to the roofline.

    :param rates: updates per second of each contender in each round
    :param bound: the roofline that the fastest setting is compared with
    :return: the ratios in each round by label, if both of their contenders ran
    """
    ratios_by_label = {}
    best = fastest(rates, SETTINGS)
    for over, under in RATIOS:
        name = best if over == FASTEST else over
        if name in rates and under in rates:
            label = f"{FASTEST} ({best})" if over == FASTEST else over
            ratios_by_label[f"{label} / {under}"] = ratios(rates[name], rates[under])
    if best:
        ratios_by_label[f"{FASTEST} ({best}) / roofline of bfloat16"] = ratios(rates[best], bound)
    return ratios_by_label


def print_rooflines(measured: dict[str, Any], bounds: dict[str, list[float]]) -> None:
    """
    Print a table of the rooflines.

    :param measured: what ``measure`` returned
    :param bounds: what ``rooflines`` returned for it
    """
    counts, moved = measured["gigaflops_of_updates"], measured["bytes_of_updates"]
    gigaflop = statistics.mean(counts[FLOWRL])
    megabytes = (moved["adam"] + moved["polyak"]) / 1e6
    copied = statistics.median(measured["copy_bytes_per_second"]) / 1e9
    rows = []
    for name, bound in bounds.items():
        speed = statistics.median(measured["product_gigaflops_per_second"][name])
        milliseconds = [f"{1e3 * gigaflop / speed:.2f}", f"{megabytes / copied:.2f}"]
        rows.append([name, f"{speed:.0f}", f"{copied:.1f}", *milliseconds, *spread(bound)])
    others = ", ".join(f"{name} {statistics.mean(counts[name]):.2f}" for name in counts if name != FLOWRL)
    title = (
        f"An update of FlowRL has {gigaflop:.2f} GFLOP of matrix products ({max(counts[FLOWRL]):.2f} with an actor step, "
        f"{min(counts[FLOWRL]):.2f} without; {others or 'no others counted'}) and moves {megabytes:.1f} MB "
        f"({moved['adam'] / 1e6:.1f} Adam, {moved['polyak'] / 1e6:.1f} Polyak averaging; "
        f"{moved['parameters'] / 1e6:.2f} M trained parameters). Rooflines, in updates a second:"
    )
    header = ["precision", "products, GFLOP/s", "copy, GB/s", "ms of products", "ms of memory", *SPREAD_HEADER]
    print_table(title, header, rows)


def print_cold_starts(title: str, samples: dict[str, dict[str, list[float]]]) -> None:
    """
    Print a table of the first updates.

    :param title: a line above the table
    :param samples: what ``cold_starts`` returned
    """

    def cells(seconds: Sequence[float]) -> list[str]:
        steady = statistics.median(seconds[UPDATE_CYCLE:])
        return [f"{seconds[0]:.1f}", f"{sum(seconds[:UPDATE_CYCLE]) - UPDATE_CYCLE * steady:.1f}"]

    rows = [[name, cache, *cells(seconds)] for name, caches in samples.items() for cache, seconds in caches.items()]
    print_table(title, ["seconds", "compiler's", "first update", f"compilation within the first {UPDATE_CYCLE}"], rows)


def main() -> None:
    """Run the benchmark with the options of the command line."""
    parser = make_parser(__file__, __doc__)
    add_timing_options(parser, rounds=7, seconds=2.0)
    add_contender_option(parser, [*SETTINGS, *PEERS, *TRANSCRIPTIONS])
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=["paper", "256x2"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu", help="torch's name of the device; the replay buffers stay on the host")
    parser.add_argument("--width", type=int, help="width of the hidden layers, in the place of the architecture's own")
    parser.add_argument("--obs-dim", type=int, default=17)
    parser.add_argument("--action-dim", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--buffer-size", type=int, default=100_000)
    parser.add_argument("--gradient-steps", type=int, nargs="+", default=[1], help="updates in each call of train()")
    parser.add_argument("--cold-start", action=BooleanOptionalAction, default=True, help="time the compiler, too")
    args = parse(
        parser,
        rounds=2,
        seconds=0.02,
        contenders=[*EAGER, *PEERS, *TRANSCRIPTIONS],
        architectures=["paper"],
        threads=[1],
        width=16,
        batch_size=16,
        buffer_size=1_000,
        cold_start=False,
    )
    record = Record(args)
    results: list[dict[str, Any]] = []
    for name in args.architectures:
        architecture = ARCHITECTURES[name] if args.width is None else replace(ARCHITECTURES[name], width=args.width)
        title = f"{name}, {architecture.width} wide, batch {args.batch_size}, obs {args.obs_dim}, act {args.action_dim}"
        for threads in args.threads:
            for measured in in_fresh_process(measure, architecture, args, threads=threads):
                steps = measured["gradient_steps"]
                rates, bounds = measured["updates_per_second"], rooflines(measured)
                of_own = {name: bounds[setting["precision"]] for name, setting in SETTINGS.items()}
                of_bfloat16 = dict.fromkeys(SETTINGS, bounds["bfloat16"])
                columns = {"of its roofline": of_own.get, "of bfloat16's": of_bfloat16.get}
                heading = f"## {title}, {threads} thread(s), {steps} update(s) a call"
                print_rates(heading, "updates a second", rates, columns)
                print_rooflines(measured, bounds)
                ratios_by_label = asked_ratios(rates, bounds["bfloat16"])
                print_ratios(ratios_by_label)
                results.append(dict(architecture=name, threads=threads, rooflines=bounds, ratios=ratios_by_label, **measured))
            record.write(results=results)  # keeps the results so far if a time limit ends the run
        if args.cold_start:
            samples = cold_starts(architecture, args)
            print_cold_starts(f"## Cold start: {title}, {args.threads[0]} thread(s)", samples)
            results.append(dict(architecture=name, threads=args.threads[0], first_updates_seconds=samples))
            record.write(results=results)


if __name__ == "__main__":
    main()
