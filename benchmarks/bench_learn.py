"""
Measure environment steps per second of ``learn()``.

The contenders are FlowRL in each of its settings, SB3's SAC and TD3, and sb3_contrib's TQC and CrossQ. SBX's SAC, which is
written in JAX, takes part if ``--sbx`` names a Python that has it.

    python benchmarks/bench_learn.py --sbx /opt/sbx/bin/python

All have networks of 256x2 (``--architecture`` selects others, which ``bench_update.py`` describes), the same number of random
first steps, one thread, and defaults for everything else. A block is a call of ``learn(reset_num_timesteps=False)`` after the
first steps. All tables have one update per environment step. With several environments in a DummyVecEnv, ``gradient_steps=-1``
does this: after each step of all environments, it makes one update for each of them.

SBX runs in a process of its own, once pinned to one core, and once free to use all.
"""

import json
import os
from argparse import Namespace
from contextlib import ExitStack
from math import lcm
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import sbx_worker
from bench import (
    ARCHITECTURES,
    PEERS,
    SETTINGS,
    UPDATE_CYCLE,
    Record,
    Work,
    add_contender_option,
    add_timing_options,
    fastest,
    in_fresh_process,
    make_model,
    make_parser,
    parse,
    print_rates,
    print_ratios,
    ratios,
    time_in_turns,
)
from stable_baselines3.common.env_util import make_vec_env

PINNED, FREE = "SBX SAC, pinned to a core", "SBX SAC, not pinned"


class SbxContender:
    """
    Control SBX's SAC, which runs in a process of its own.

    :param python: the Python of a virtual environment with sbx-rl
    :param pinned: whether to pin the process to one core
    :param arguments: arguments of ``sbx_worker.py``
    """

    def __init__(self, python: Path, pinned: bool, *arguments: Any):
        pin = ["taskset", "--cpu-list", str(max(os.sched_getaffinity(0)))] if pinned else []
        command = [*pin, str(python), sbx_worker.__file__, *map(str, arguments)]
        self.process = Popen(command, stdin=PIPE, stdout=PIPE, text=True)
        self.versions = json.loads(self._answer())

    def learn(self, steps: int) -> None:
        """
        Learn for some steps, and wait until they are done.

        :param steps: environment steps to learn
        """
        assert self.process.stdin is not None  # for mypy
        print(steps, file=self.process.stdin, flush=True)
        self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None  # for mypy
        for line in self.process.stdout:
            if line.startswith(sbx_worker.ANSWER):
                return line.removeprefix(sbx_worker.ANSWER)
        raise RuntimeError(f"SBX ended with exit code {self.process.wait()}; its error is above.")

    def __enter__(self) -> "SbxContender":
        return self

    def __exit__(self, *exception: Any) -> None:
        with self.process:
            self.process.kill()


def learning(name: str, env_id: str, n_envs: int, args: Namespace) -> Work:
    """
    Return the work of learning.

    :param name: the contender
    :param env_id: the environment
    :param n_envs: number of environments
    :param args: the script's options
    :return: a function that learns for the given number of steps. The random first steps are already done
    """
    model = make_model(
        name,
        make_vec_env(env_id, n_envs),
        ARCHITECTURES[args.architecture],
        learning_starts=args.learning_starts,
        gradient_steps=1 if n_envs == 1 else -1,
        device=args.device,
    )
    model.learn(args.learning_starts)
    return lambda steps: model.learn(steps, reset_num_timesteps=False)


def measure(env_id: str, n_envs: int, args: Namespace) -> dict[str, Any]:
    """
    Time all contenders in one task.

    :param env_id: the environment
    :param n_envs: number of environments
    :param args: the script's options
    :return: steps per second of each contender in each round, and the versions of SBX's packages
    """
    contenders = {name: learning(name, env_id, n_envs, args) for name in args.contenders}
    sbx_versions = {}
    with ExitStack() as stack:
        if args.sbx is not None:
            for name in (PINNED, FREE):
                sbx = stack.enter_context(SbxContender(args.sbx, name == PINNED, env_id, n_envs, args.learning_starts))
                sbx.learn(args.learning_starts)
                contenders[name], sbx_versions = sbx.learn, sbx.versions
        rates = time_in_turns(contenders, args.rounds, args.seconds, lcm(UPDATE_CYCLE, n_envs))
    return dict(steps_per_second=rates, sbx_versions=sbx_versions)


def main() -> None:
    """Run the benchmark with the options of the command line."""
    parser = make_parser(__file__, __doc__)
    add_timing_options(parser, rounds=5, seconds=5.0)
    add_contender_option(parser, [*SETTINGS, *PEERS])
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v4", "Ant-v4"])
    parser.add_argument("--n-envs", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--learning-starts", type=int, default=1_000)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="256x2")
    parser.add_argument("--device", default="cpu", help="torch's name of the device, of all but SBX")
    parser.add_argument("--sbx", type=Path, help="the Python of a virtual environment with sbx-rl")
    args = parse(
        parser,
        rounds=2,
        seconds=0.05,
        contenders=["FlowRL float32", "SAC"],
        envs=["Pendulum-v1"],
        n_envs=[2],
        learning_starts=20,
    )
    record = Record(args)
    results = []
    for env_id in args.envs:
        for n_envs in args.n_envs:
            measured = in_fresh_process(measure, env_id, n_envs, args)
            rates = measured["steps_per_second"]
            print_rates(f"## {env_id}, {n_envs} environment(s), one thread", "environment steps a second", rates)
            best = fastest(rates, SETTINGS)
            others = {f"{best} / {name}": ratios(rates[best], rates[name]) for name in rates if best and name not in SETTINGS}
            print_ratios(others)
            results.append(dict(env=env_id, n_envs=n_envs, threads=1, ratios=others, **measured))
            record.write(results=results)  # keeps the results so far if a time limit ends the run


if __name__ == "__main__":
    main()
