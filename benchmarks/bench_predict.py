"""
Measure the latency of ``predict``.

The contenders are FlowRL, SB3's SAC and TD3, FlowRL with its actor compiled by torch.compile, and FlowRL as an ONNX file in
onnxruntime. FlowRL and SAC predict deterministically and stochastically.

    python benchmarks/bench_predict.py

Observations are float64, like MuJoCo's. All contenders but the ONNX file go through SB3's ``predict``, from numpy to numpy.
The file gets float32 observations and computes the same actions. Networks of 256x2, one flow step, one thread.
"""

import logging
import tempfile
from argparse import BooleanOptionalAction, Namespace
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from bench import (
    ARCHITECTURES,
    SPREAD_HEADER,
    IdleEnv,
    Record,
    Work,
    add_timing_options,
    in_fresh_process,
    make_model,
    make_parser,
    parse,
    print_ratios,
    print_table,
    ratios,
    spread,
    time_in_turns,
)
from onnxruntime import InferenceSession, SessionOptions
from torch._dynamo.utils import counters

from sb3_flowrl.export.onnx import export_onnx


def predicting(model: Any, observations: np.ndarray, deterministic: bool) -> Work:
    """
    Return the work of predicting.

    :param model: anything with SB3's ``predict``
    :param observations: one observation, or a batch of them
    :param deterministic: as in ``predict``
    :return: a function that predicts the given number of times
    """

    def work(calls: int) -> None:
        for _ in range(calls):
            model.predict(observations, deterministic=deterministic)

    return work


def compiled(policy: Any, observations: np.ndarray) -> Any:
    """
    Compile the actor of a policy for deterministic actions.

    :param policy: FlowRL's policy
    :param observations: what it will predict from
    :return: a copy of the policy, with its actor compiled for these observations
    :raises RuntimeError: if ``predict`` did not call the compiled actor, because then eager code would be timed as compiled
    """
    policy = deepcopy(policy)
    policy.trained_actor.compile(dynamic=False)
    graphs = counters["stats"]["unique_graphs"]
    policy.predict(observations, deterministic=True)
    if counters["stats"]["unique_graphs"] == graphs:
        raise RuntimeError("predict does not call the actor, so that it was not compiled")
    return policy


def running(path: str, observations: np.ndarray) -> Work:
    """
    Return the work of running an ONNX file.

    :param path: the ONNX file, without the input for noise
    :param observations: a batch of observations
    :return: a function that computes the deterministic actions the given number of times
    """
    options = SessionOptions()
    options.intra_op_num_threads = 1
    session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {"observation": observations.astype(np.float32)}

    def work(calls: int) -> None:
        for _ in range(calls):
            session.run(["action"], inputs)

    return work


def measure(batch_size: int, args: Namespace) -> dict[str, list[float]]:
    """
    Time all contenders at a batch size.

    :param batch_size: observations in each prediction
    :param args: the script's options
    :return: predictions per second of each contender in each round
    """
    models = {}
    for name, key in {"FlowRL": "FlowRL float32", "SAC": "SAC", "TD3": "TD3"}.items():
        env = IdleEnv(args.obs_dim, args.action_dim, np.float64)
        models[name] = make_model(key, env, ARCHITECTURES["256x2"], buffer_size=1)
    batch = np.random.default_rng(0).standard_normal((batch_size, args.obs_dim))
    observations = batch[0] if batch_size == 1 else batch
    contenders = {
        f"{name}, {kind}": predicting(model, observations, kind == "deterministic")
        for name, model in models.items()
        for kind in ("deterministic", "stochastic")
        if (name, kind) != ("TD3", "stochastic")  # TD3's policy is deterministic
    }
    if args.compiled:
        contenders["FlowRL compiled, deterministic"] = predicting(
            compiled(models["FlowRL"].policy, observations), observations, deterministic=True
        )
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "policy.onnx")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about torchvision, which is not needed
        export_onnx(models["FlowRL"], path, deterministic=True)
        contenders["FlowRL ONNX, deterministic"] = running(path, batch)
        return time_in_turns(contenders, args.rounds, args.seconds)


def main() -> None:
    """Run the benchmark with the options of the command line."""
    parser = make_parser(__file__, __doc__)
    add_timing_options(parser, rounds=15, seconds=0.3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--obs-dim", type=int, default=17)
    parser.add_argument("--action-dim", type=int, default=6)
    parser.add_argument("--compiled", action=BooleanOptionalAction, default=True, help="compile the actor, too")
    args = parse(parser, rounds=2, seconds=0.02, batch_sizes=[1], compiled=False)
    record = Record(args)
    results = []
    for batch_size in args.batch_sizes:
        rates = in_fresh_process(measure, batch_size, args)
        latencies = {name: [1e6 / rate for rate in values] for name, values in rates.items()}
        rows = ([name, *spread(values)] for name, values in latencies.items())
        print_table(f"## batch {batch_size}, one thread", ["µs for each prediction", *SPREAD_HEADER], rows)
        ratios_of_batch = {
            f"latency of FlowRL / SAC, {kind}": ratios(latencies[f"FlowRL, {kind}"], latencies[f"SAC, {kind}"])
            for kind in ("deterministic", "stochastic")
        }
        print_ratios(ratios_of_batch)
        results.append(dict(batch_size=batch_size, microseconds=latencies, ratios=ratios_of_batch, threads=1))
        record.write(results=results)


if __name__ == "__main__":
    main()
