"""
Provide what the speed benchmarks share: contenders, timing, tables and records.

All contenders of a table live in one fresh process with a fixed number of threads. They take turns: in each round, each of
them does one block of work. So other work on the machine slows all of them alike. Only ratios of numbers from one table
mean anything. A ratio is computed in each round, and the median of these ratios is reported.
"""

import argparse
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from sb3_flowrl import FlowRL, reference_arguments
from sb3_flowrl.legacy import FORMER_POLICY_DEFAULTS

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "speed"
PACKAGES = ("torch", "stable-baselines3", "sb3-contrib", "gymnasium", "mujoco", "numpy")
#: Instruction sets that make matrix products much faster on processors that have them.
PROCESSOR_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile")

#: FlowRL's settings, by their names in the tables.
SETTINGS: dict[str, dict[str, Any]] = {
    "FlowRL float32": dict(precision="float32", compile=False),
    "FlowRL float32 compiled": dict(precision="float32", compile=True),
    "FlowRL float32_fast compiled": dict(precision="float32_fast", compile=True),
    "FlowRL bfloat16": dict(precision="bfloat16", compile=False),
    "FlowRL bfloat16 compiled": dict(precision="bfloat16", compile=True),
}
PEERS: dict[str, type[OffPolicyAlgorithm]] = {"SAC": SAC, "TD3": TD3, "TQC": TQC, "CrossQ": CrossQ}
EAGER = [name for name, setting in SETTINGS.items() if not setting["compile"]]
COMPILED = [name for name, setting in SETTINGS.items() if setting["compile"]]
#: Least common multiple of FlowRL's, TD3's and CrossQ's delays of policy updates.
UPDATE_CYCLE = 6
#: Units of work before the timing. By then everything is compiled, and both of FlowRL's CUDA graphs are captured: one at the
#: fourth update with a step of the actor, the other at the fourth update without one.
WARM_UP = 2 * UPDATE_CYCLE

#: A function that does the given number of units of work: updates, environment steps or predictions.
Work = Callable[[int], object]
Result = TypeVar("Result")


# --- contenders


@dataclass(frozen=True)
class Architecture:
    """
    Describe the networks of all contenders of a table.

    :param width: width of every hidden layer
    :param actor_layers: hidden layers of FlowRL's actor
    :param critic_layers: hidden layers of FlowRL's critics and V
    :param peer_layers: hidden layers of the peers' actors, and of their critics
    :param flowrl: FlowRL's arguments: "authors" for the authors' arguments and layout, "paper" for the paper's equations,
        which the transcription computes, "defaults" for our defaults
    """

    width: int
    actor_layers: int
    critic_layers: int
    peer_layers: tuple[int, int]
    flowrl: str

    def flowrl_arguments(self) -> dict[str, Any]:
        """
        Return FlowRL's arguments for these networks.

        :return: keyword arguments of ``FlowRL``, without the precision
        """
        if self.flowrl == "authors":
            arguments = reference_arguments()
        else:
            arguments = dict(policy_kwargs={}) if self.flowrl == "defaults" else paper_like_arguments()
        arguments.pop("precision", None)
        arguments["policy_kwargs"]["net_arch"] = self.flowrl_net_arch()
        return arguments

    def flowrl_net_arch(self) -> dict[str, list[int]]:
        """
        Return the hidden layers of FlowRL's networks.

        :return: ``net_arch`` of FlowRL
        """
        net_arch: dict[str, list[int]] = dict(pi=[self.width] * self.actor_layers, qf=[self.width] * self.critic_layers)
        if self.flowrl == "defaults":  # Q_β* and V_β* are half as wide
            net_arch["behavior"] = [self.width // 2] * self.critic_layers
        return net_arch

    def peer_arguments(self) -> dict[str, Any]:
        """
        Return the peers' arguments for these networks.

        :return: keyword arguments of the peers
        """
        actor_layers, critic_layers = self.peer_layers
        return dict(policy_kwargs=dict(net_arch=dict(pi=[self.width] * actor_layers, qf=[self.width] * critic_layers)))


def paper_like_arguments() -> dict[str, Any]:
    """
    Return the arguments that make FlowRL's update compute the paper's equations.

    :return: keyword arguments of ``FlowRL``, with the authors' activations
    """
    policy_kwargs = {name: value for name, value in FORMER_POLICY_DEFAULTS.items() if name != "net_arch"}
    return dict(learning_rate=3e-4, spread_coef=0.0, delay_behavior=False, actor_tau=None, policy_kwargs=policy_kwargs)


ARCHITECTURES = {
    "paper": Architecture(512, actor_layers=2, critic_layers=4, peer_layers=(3, 3), flowrl="authors"),
    "table1": Architecture(512, actor_layers=2, critic_layers=3, peer_layers=(2, 3), flowrl="paper"),
    "256x2": Architecture(256, actor_layers=2, critic_layers=2, peer_layers=(2, 2), flowrl="paper"),
    "defaults": Architecture(256, actor_layers=2, critic_layers=2, peer_layers=(2, 2), flowrl="defaults"),
}


class IdleEnv(gym.Env):
    """
    Imitate an environment whose steps cost nothing.

    It has spaces, but every step returns the same observation.

    :param obs_dim: size of the observations
    :param action_dim: size of the actions
    :param dtype: type of the observations; MuJoCo's are float64
    """

    def __init__(self, obs_dim: int, action_dim: int, dtype: type[np.floating] = np.float32):
        self.observation_space = spaces.Box(-np.inf, np.inf, (obs_dim,), dtype)
        self.action_space = spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
        self._observation = np.zeros(obs_dim, dtype)

    def reset(self, *, seed=None, options=None):
        """Return the only observation."""
        return self._observation, {}

    def step(self, action):
        """Return the only observation and no reward. Episodes do not end."""
        return self._observation, 0.0, False, False, {}


def make_model(name: str, env: GymEnv | str, architecture: Architecture, **arguments: Any) -> OffPolicyAlgorithm:
    """
    Make the model of a contender.

    :param name: a key of ``SETTINGS`` or of ``PEERS``
    :param env: the environment
    :param architecture: the networks
    :param arguments: further keyword arguments of the algorithm
    :return: the model, with a logger that writes nowhere
    """
    algorithm: type[OffPolicyAlgorithm]
    if name in SETTINGS:
        algorithm, own = FlowRL, {**architecture.flowrl_arguments(), **SETTINGS[name]}
    else:
        algorithm, own = PEERS[name], architecture.peer_arguments()
    model = algorithm("MlpPolicy", env, **{"device": "cpu", **own, **arguments})  # type: ignore[arg-type]
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def fill_replay_buffer(buffer: ReplayBuffer, chunk: int = 10_000) -> None:
    """
    Fill a replay buffer with random transitions.

    They are written into its arrays, because millions of calls of ``add`` would take minutes.

    :param buffer: the replay buffer, which is full afterwards
    :param chunk: how many transitions are drawn at once. It is small, so that drawing does not raise the peak memory
    """
    generator = np.random.default_rng(0)
    for start in range(0, buffer.buffer_size, chunk):
        rows = slice(start, start + chunk)
        for array in (buffer.observations, buffer.next_observations, buffer.rewards):
            array[rows] = generator.standard_normal(array[rows].shape, dtype=np.float32)
        buffer.actions[rows] = generator.uniform(-1.0, 1.0, buffer.actions[rows].shape)
        buffer.dones[rows] = generator.random(buffer.dones[rows].shape) < 0.01
        buffer.timeouts[rows] = 0.0
    buffer.full, buffer.pos = True, 0


def updates(model: Any, batch_size: int, gradient_steps: int = 1) -> Work:
    """
    Return the work of updating a model.

    :param model: a model whose replay buffer is filled
    :param batch_size: samples in each update
    :param gradient_steps: updates in each call of ``train``
    :return: a function that calls ``train`` the given number of times
    """

    def work(calls: int) -> None:
        for _ in range(calls):
            model.train(gradient_steps=gradient_steps, batch_size=batch_size)

    return work


# --- timing


def in_fresh_process(
    function: Callable[..., Result], *args: Any, threads: int = 1, environment: Mapping[str, str] | None = None
) -> Result:
    """
    Call a function in a new process.

    The number of threads has to be set before any library starts, and torch.compile writes it into its code. A process also
    keeps memory that was freed in it, which would count as used by the next contender.

    :param function: a function that the new process can import
    :param args: its arguments
    :param threads: how many threads numpy and torch use
    :param environment: further environment variables
    :return: what the function returned
    """
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **(environment or {})}
    with patch.dict(os.environ, variables), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(_call_with_threads, function, threads, args).result()


def _call_with_threads(function: Callable[..., Result], threads: int, args: Sequence[Any]) -> Result:
    th.set_num_threads(threads)
    warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)  # -v4 tasks are used on purpose
    # Otherwise a table would list an eager update as compiled
    warnings.filterwarnings("error", message=".*(could not be compiled|can't be captured)")
    return function(*args)


def time_in_turns(contenders: Mapping[str, Work], rounds: int, seconds: float, multiple: int = 1) -> dict[str, list[float]]:
    """
    Time contenders against each other, block by block in turns.

    :param contenders: their work, by name
    :param rounds: how many blocks each one does
    :param seconds: approximate length of a block
    :param multiple: the number of units in a block is a multiple of this. If policy updates are delayed, choose a multiple of
        the delays, so that all blocks do the same work
    :return: units per second of each contender in each round
    """
    sizes = {}
    for name, work in contenders.items():
        seconds_of(work, multiple * math.ceil(WARM_UP / multiple))  # compilation would distort the sizes of the blocks
        repeats = 1
        while (elapsed := seconds_of(work, repeats * multiple)) < seconds / 4:
            repeats *= 2
        sizes[name] = multiple * max(1, round(repeats * seconds / elapsed))
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        # Back and forth, so that a steady drift of the machine's speed favors nobody
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            rates[name].append(sizes[name] / seconds_of(contenders[name], sizes[name]))
        print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    return rates


def seconds_of(work: Work, units: int) -> float:
    """
    Measure how long work takes.

    :param work: does the given number of units
    :param units: how many
    :return: seconds until everything is done, including what the GPU still computes after the last call has returned
    """
    start = time.perf_counter()
    work(units)
    if th.cuda.is_initialized():
        th.cuda.synchronize()
    return time.perf_counter() - start


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """
    Divide the rates of two contenders in each round.

    :param over: rates of one contender, one for each round
    :param under: rates of the other
    :return: their ratio in each round
    """
    return [a / b for a, b in zip(over, under, strict=True)]


def fastest(rates: Mapping[str, Sequence[float]], names: Iterable[str]) -> str:
    """
    Find the fastest of some contenders.

    :param rates: what ``time_in_turns`` returned
    :param names: the contenders to choose from; those that did not run are ignored
    :return: the one with the highest median, or "" if none of them ran
    """
    return max((name for name in names if name in rates), key=lambda name: float(np.median(rates[name])), default="")


# --- tables and records


def spread(samples: Sequence[float], digits: int = 1) -> list[str]:
    """
    Summarize samples in three cells of a table.

    :param samples: one value for each round
    :param digits: decimal places
    :return: the median, the quartiles, and the extremes
    """
    low, first, median, third, high = (f"{value:.{digits}f}" for value in np.quantile(samples, [0, 0.25, 0.5, 0.75, 1]))
    return [median, f"{first} – {third}", f"{low} – {high}"]


SPREAD_HEADER = ["median", "quartiles", "min – max"]


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """
    Print a Markdown table.

    :param title: a line above the table
    :param header: the names of the columns
    :param rows: the cells
    """
    print(f"\n{title}\n")
    lines = [list(header), ["---"] * len(header), *(list(row) for row in rows)]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines), flush=True)


def print_rates(
    title: str,
    unit: str,
    rates: Mapping[str, Sequence[float]],
    compared: Mapping[str, Callable[[str], Sequence[float] | None]] | None = None,
) -> None:
    """
    Print a table of rates and their ratios to SAC's.

    :param title: a line above the table
    :param unit: what is counted per second
    :param rates: what ``time_in_turns`` returned
    :param compared: further columns of ratios by name: each function returns the rates that a contender's rates are divided
        by, or None for an empty cell
    """
    columns = {"x SAC": lambda name: rates.get("SAC"), **(compared or {})}

    def quotient(name: str, under: Sequence[float] | None) -> str:
        return "" if under is None else f"{np.median(ratios(rates[name], under)):.2f}"

    rows = ([name, *spread(rates[name]), *(quotient(name, column(name)) for column in columns.values())] for name in rates)
    print_table(title, [unit, *SPREAD_HEADER, *columns], rows)


def print_ratios(ratios_by_label: Mapping[str, Sequence[float]]) -> None:
    """
    Print a table of ratios.

    :param ratios_by_label: the ratio in each round, by its label
    """
    rows = ([name, *spread(values, digits=2)] for name, values in ratios_by_label.items())
    print_table("Ratios, round by round:", ["ratio", *SPREAD_HEADER], rows)


def make_parser(script: str, doc: str | None) -> argparse.ArgumentParser:
    """
    Make a parser with the options that all scripts have.

    :param script: the script's ``__file__``
    :param doc: the script's ``__doc__``
    :return: the parser
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    output = RESULTS / f"{Path(script).stem}.json"
    parser.add_argument("--output", type=Path, default=output, help="the JSON file of the run")
    parser.add_argument("--quick", action="store_true", help="try the script out in seconds; the numbers mean nothing")
    return parser


def add_timing_options(parser: argparse.ArgumentParser, rounds: int, seconds: float) -> None:
    """
    Add the options ``--rounds`` and ``--seconds``.

    :param parser: what ``make_parser`` returned
    :param rounds: the default of ``--rounds``
    :param seconds: the default of ``--seconds``
    """
    parser.add_argument("--rounds", type=int, default=rounds, help="blocks of each contender")
    parser.add_argument("--seconds", type=float, default=seconds, help="about how long a block is")


def add_contender_option(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """
    Add the option ``--contenders``.

    :param parser: what ``make_parser`` returned
    :param names: all contenders, which are also the default
    """
    choices = list(names)
    parser.add_argument("--contenders", nargs="+", choices=choices, default=choices, metavar="NAME", help=", ".join(choices))


def parse(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """
    Parse the command line.

    :param parser: the parser
    :param quick: defaults that replace the usual ones if ``--quick`` is given
    :return: the options
    """
    args = parser.parse_args()
    if args.quick:
        parser.set_defaults(**quick)
        args = parser.parse_args()
    return args


class Record:
    """
    Keep the options, the machine and the results of a run in a JSON file.

    :param args: the script's options
    """

    def __init__(self, args: argparse.Namespace):
        self.path: Path = args.output
        self.contents: dict[str, Any] = dict(
            command=shlex.join(["python", *(argument.removeprefix(f"{ROOT}/") for argument in sys.argv)]),
            # relative paths do not depend on where the checkout is
            options={
                name: str(value).removeprefix(f"{ROOT}/") if isinstance(value, Path) else value
                for name, value in vars(args).items()
            },
            commit=_commit(),
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=versions(PACKAGES),
            processor=_processor(),
            gpu=th.cuda.get_device_name() if th.cuda.is_available() else "none",
            # Shows whether other work ran beside the benchmark, which makes its numbers less reliable
            load_average=dict(start=os.getloadavg()),
        )

    def write(self, **results: Any) -> None:
        """
        Write the file, with the results so far.

        :param results: what was measured, with all samples
        :raises ValueError: if a number is not finite
        """
        self.contents["load_average"]["end"] = os.getloadavg()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.contents | results, indent=1, allow_nan=False) + "\n")
        print(f"\nwrote {self.path}")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """
    Look up the versions of packages.

    :param packages: names of distributions
    :return: their versions by name, or "not installed", and Python's version
    """
    versions_by_name = {"python": platform.python_version()}
    for package in packages:
        try:
            versions_by_name[package] = version(package)
        except PackageNotFoundError:
            versions_by_name[package] = "not installed"
    return versions_by_name


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown, as this is no git checkout"


def _processor() -> dict[str, Any]:
    lines: dict[str, str] = {}
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            lines.setdefault(key.strip(), value.strip())
    flags = lines.get("flags", "").split()
    return dict(
        name=lines.get("model name", platform.processor()),
        family=lines.get("cpu family", ""),  # on virtual machines the name is often just "AMD EPYC"
        model=lines.get("model", ""),
        flags=[flag for flag in PROCESSOR_FLAGS if flag in flags],
        cores=os.cpu_count(),
    )
