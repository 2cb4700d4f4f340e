"""
Try random configurations of FlowRL, a third of which hold something odd, and report what fails without saying why.

    python -m tests.fuzz --n 3000 --seed 0 --output fuzz.json    # configurations 0 to 2999
    python -m tests.fuzz --only 1234                             # one of them, with its traceback

Each is made, learns, predicts, and is saved and loaded in several ways. The outcomes:

- ok
- refused: by an error that was raised on purpose, by this package or by SB3 or gymnasium, with a message; or by the user's own
- raw: any other error. It is SB3's own if SAC, where it takes the same arguments, fails in the same way
- false: no error, but a wrong result, such as actions out of bounds or a loaded model that acts otherwise; or an error though
  nothing is odd

A configuration is drawn from its number alone, see tests/fuzz_configurations.py.
"""

import argparse
import collections
import contextlib
import inspect
import io
import json
import linecache
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.her import HerReplayBuffer
from torch import nn

import sb3_flowrl
from sb3_flowrl import DiagnosticsCallback, FlowRL, ResumableCheckpointCallback
from sb3_flowrl.export.safe_policy import load_policy_safe, save_policy_safe
from tests import fuzz_configurations, fuzz_inputs
from tests.fuzz_configurations import POLICY_ARGUMENTS, Configuration, draw

#: Seconds after which a configuration is taken to hang
PATIENCE = 120
PACKAGES = {
    "ours": Path(str(sb3_flowrl.__file__)).parent,
    "SB3": Path(str(stable_baselines3.__file__)).parent,
    "gymnasium": Path(str(gym.__file__)).parent,
    "fuzz": Path(__file__).parent,
}


class FalseResultError(Exception):
    """A wrong result without a word."""


class HangError(BaseException):
    """It takes too long."""


@dataclass
class Result:
    """
    :ivar outcome: "ok", "refused", "raw" or "false"
    :ivar by: who refused: "ours", "SB3", "gymnasium" or "user"
    :ivar sac: for raw errors, what SAC does: "the same", "raw: ...", "refused", "ok", or "" where it can't be compared
    """

    seed: int
    odd: str
    shown: str
    outcome: str = "ok"
    by: str = ""
    stage: str = ""
    error: str = ""
    message: str = ""
    where: str = ""
    sac: str = ""

    @property
    def is_sb3s_own(self) -> bool:
        return self.outcome == "raw" and self.sac == "the same"


# ------------------------------------------------------------------------------------------------------------- judgment


def frames_of(trace: TracebackType | None) -> list[tuple[str, int, str]]:
    return [(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in traceback.walk_tb(trace)]


def owner_of(file: str) -> str:
    return next((name for name, folder in PACKAGES.items() if Path(file).is_relative_to(folder)), "")


def where(error: BaseException) -> str:
    """The innermost function, and the innermost of ours or of SB3's."""
    frames = frames_of(error.__traceback__)
    described = [f"{Path(file).name}:{name}" for file, _, name in frames]
    known = [text for text, (file, _, _) in zip(described, frames, strict=True) if owner_of(file) in ("ours", "SB3")]
    return " < ".join(dict.fromkeys([described[-1], *known[-1:]]))


def judge(error: BaseException) -> tuple[str, str]:
    """:return: the outcome, and who refused"""
    if isinstance(error, (FalseResultError, fuzz_inputs.OutsideError)):
        return "false", ""
    if isinstance(error, fuzz_inputs.UsersError):
        return "refused", "user"
    file, line, _ = frames_of(error.__traceback__)[-1]
    is_on_purpose = linecache.getline(file, line).strip().startswith(("raise", "assert"))
    owner = owner_of(file)
    if is_on_purpose and owner == "ours" and len(str(error)) > 30:
        return "refused", owner
    if is_on_purpose and owner in ("SB3", "gymnasium") and len(str(error)) > 10:
        return "refused", owner
    return "raw", ""


def check(condition: Any, message: str) -> None:
    if not condition:
        raise FalseResultError(message)


# ---------------------------------------------------------------------------------------------------- one configuration


@dataclass
class Trial:
    """
    What is done with one configuration.

    :ivar stage: what it is doing now, for the report
    """

    configuration: Configuration
    folder: Path
    stage: str = "make the environment"
    frozen: dict[str, th.Tensor] = field(default_factory=dict)

    def run(self) -> None:
        configuration = self.configuration
        model = self.make()
        if model.replay_buffer is None:  # asked for by _init_setup_model=False
            return
        first = parameters(model)
        self.learn(model)
        self.check_moved(model, first)
        if "seeds" in configuration.then and isinstance(configuration.arguments.get("seed"), int):
            self.stage = "same seed"
            twin = self.make()
            self.learn(twin)
            check(same(parameters(model), parameters(twin)), "two runs with the same seed differ")
        self.predict(model)
        if configuration.late:
            self.change(model)
        for name in () if configuration.late == "new head" else configuration.then:
            self.stage = name
            getattr(self, f"then_{name}", lambda _: None)(model)

    def make(self) -> FlowRL:
        self.stage = "make the environment"
        env = self.configuration.env.make()
        self.stage = "construct"
        return FlowRL(env=env, **self.configuration.all_arguments())

    def steps(self, model: Any, n: int) -> int:
        starts = self.configuration.arguments["learning_starts"]
        waits = starts if isinstance(starts, int) and 0 <= starts < 100 else 0
        return waits + n * model.n_envs

    def learn(self, model: Any) -> None:
        self.stage = "learn"
        total = self.configuration.total_timesteps
        try:
            model.learn(self.steps(model, 14) if total is None else total, **self.configuration.learn)
        except Exception:
            check_finite(model)  # whatever happened
            raise
        check_finite(model)

    def learn_more(self, model: FlowRL, n: int = 6, **kwargs: Any) -> None:
        model.learn(n * model.n_envs, reset_num_timesteps=False, **kwargs)
        check_finite(model)

    def check_moved(self, model: FlowRL, first: dict[str, th.Tensor]) -> None:
        """Whether what should learn has moved, where there is no reason that it should not have."""
        kwargs = self.configuration.policy_kwargs
        if self.configuration.odd or model._n_updates < 4 * model.policy_delay or model.batch_size < 2:
            return
        if not kwargs["layer_norm"] and kwargs["batch_norm"] is False:
            return  # all units of a narrow layer may be dead
        fault = (kwargs.get("features_extractor_kwargs") or {}).get("fault")
        for name, now in parameters(model).items():
            is_fixed = "unused" in name or ("features_extractor" in name and fault in ("frozen", "detached"))
            if name.endswith("weight") and now.dim() > 1 and not is_fixed:
                check(not th.equal(now, first[name]), f"{name} has not moved in {model._n_updates} updates")

    def check_order(self, model: FlowRL) -> None:
        """Networks must get the keys of observations in one order, whether acting or learning."""
        if isinstance(model.observation_space, spaces.Dict) and model.replay_buffer is not None and model.replay_buffer.size():
            acting = list(model.policy.obs_to_tensor(observations(model.observation_space))[0])  # type: ignore[arg-type]
            with contextlib.suppress(RuntimeError):  # of HER, before the first episode has ended
                learning = list(model.replay_buffer.sample(1, env=model.get_vec_normalize_env()).observations)
                check(acting == learning, f"keys of observations are {acting} in acting and {learning} in learning")

    def predict(self, model: FlowRL) -> None:
        self.stage = "predict"
        check_actions(model)
        self.check_order(model)
        if self.configuration.odd == "observation":
            model.predict(self.configuration.observation)

    def change(self, model: FlowRL) -> None:
        late = self.configuration.late
        self.stage = f"late: {late}"
        parts: dict[str, list[nn.Parameter]] = {
            "freeze actor": list(model.actor.parameters()),
            "freeze critic": list(model.critic.networks.parameters()),
            "freeze behavior": list(model.behavior_critic.networks.parameters()),
            "freeze layer": [next(model.actor.velocity_net.parameters())],
        }
        frozen = parts.get(late, [])
        for parameter in frozen:
            parameter.requires_grad_(False)
        before = [parameter.clone() for parameter in frozen]
        if late == "float64 default":
            th.set_default_dtype(th.float64)
        elif late == "new head":
            model.actor.head = nn.Linear(4, 4)
        elif late == "new env":
            model.set_env(self.configuration.env.make())
        elif late == "new seed":
            model.set_random_seed(3)
        elif late == "dropout in training mode":
            model.actor.features_extractor.train()
        check_actions(model)
        self.learn_more(model)
        for was, parameter in zip(before, frozen, strict=True):
            check(th.equal(was, parameter), f"{late}: it has moved by {(was - parameter).abs().max()}")
        check_actions(model)

    # ---- then

    def then_save(self, model: FlowRL) -> None:
        file = io.BytesIO()
        model.save(file)
        has_goals = isinstance(model.replay_buffer, HerReplayBuffer)  # which needs an environment
        with_env = has_goals or self.configuration.seed % 2 == 0
        env = self.configuration.env.make() if with_env else None
        loaded = FlowRL.load(io.BytesIO(file.getvalue()), env=env, **self.configuration.load)
        if self.configuration.load:
            return
        check(same(parameters(model), parameters(loaded)), "the loaded model has other parameters")
        check_same_actions(model, loaded)
        if with_env and not has_goals:  # whose buffer, now empty, can't be sampled at once
            self.learn_more(loaded)

    def then_policy(self, model: FlowRL) -> None:
        file = self.folder / "policy.pth"
        model.policy.save(str(file))
        check_same_actions(model, type(model.policy).load(file))

    def then_safe(self, model: FlowRL) -> None:
        file = self.folder / "policy.safetensors"
        try:
            save_policy_safe(model.policy, file)
        except ValueError as error:
            if judge(error)[0] == "refused":
                return  # such as an extractor of the user's own
            raise
        check_same_actions(model.policy.trained_actor, load_policy_safe(file))

    def then_parameters(self, model: FlowRL) -> None:
        before = parameters(model)
        model.set_parameters(model.get_parameters())
        check(same(before, parameters(model)), "set_parameters(get_parameters()) changes parameters")

    def then_again(self, model: FlowRL) -> None:
        model.learn(self.steps(model, 6))
        check_finite(model)

    def then_callbacks(self, model: FlowRL) -> None:
        diagnostics = DiagnosticsCallback(every=5, sample_size=16)
        self.learn_more(model, callback=[diagnostics, ResumableCheckpointCallback(self.folder / "run", save_freq=7)])

    def then_checkpoint(self, model: FlowRL) -> None:
        model.save_checkpoint(self.folder / "checkpoints")
        env = self.configuration.env.make()
        resumed = FlowRL.load_checkpoint(self.folder / "checkpoints", env)
        check_same_actions(model, resumed)
        states = generators()
        self.learn_more(model)
        restore(states)
        resumed = FlowRL.load_checkpoint(self.folder / "checkpoints", self.configuration.env.make())
        if self.configuration.late.startswith("freeze"):
            return  # what is frozen isn't saved
        self.learn_more(resumed)
        if not self.configuration.env.quirk:
            check(same(parameters(model), parameters(resumed)), "a run that is resumed goes on otherwise")


def parameters(model: Any) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def same(ours: dict[str, th.Tensor], theirs: dict[str, th.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(th.equal(value, theirs[name]) for name, value in ours.items())


def check_finite(model: Any) -> None:
    for name, value in model.policy.state_dict().items():
        check(value.isfinite().all(), f"{name} is not finite after learn()")


def observations(space: spaces.Space, n: int = 3) -> Any:
    rng = np.random.default_rng(0)
    drawn = [fuzz_inputs.sample(space, rng) for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([each[key] for each in drawn]) for key in space.spaces}
    return np.stack(drawn)


def check_actions(model: FlowRL) -> None:
    space, many = model.action_space, observations(model.observation_space)
    assert isinstance(space, spaces.Box)
    one = fuzz_inputs.sample(model.observation_space, np.random.default_rng(0))
    for obs, shape in ((many, (3, *space.shape)), (one, space.shape)):
        for deterministic in (False, True):
            actions, _ = model.predict(obs, deterministic=deterministic)
            check(np.shape(actions) == shape, f"actions of shape {np.shape(actions)} in place of {shape}")
            check((actions >= space.low).all() and (actions <= space.high).all(), f"action {actions} is out of bounds")
        check(np.array_equal(model.predict(obs, deterministic=True)[0], actions), "deterministic actions differ")


def check_same_actions(ours: Any, theirs: Any) -> None:
    obs = observations(ours.observation_space)
    states = generators()
    for deterministic in (True, False):
        actions = []
        for each in (ours, theirs):
            th.manual_seed(0)
            actions.append(each.predict(obs, deterministic=deterministic)[0])
        check(np.array_equal(*actions), "what is loaded acts otherwise")
    restore(states)


def generators() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), th.get_rng_state()


def restore(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    th.set_rng_state(states[2])


# ------------------------------------------------------------------------------------------------------------------ SAC

_SACS_ARGUMENTS = set(inspect.signature(SAC).parameters) - {"env", "_init_setup_model"}
_SACS_POLICY_ARGUMENTS = set(inspect.signature(SAC.policy_aliases["MlpPolicy"]).parameters)


def is_sacs_too(configuration: Configuration) -> bool:
    """Whether all that is odd can be given to SAC as well."""
    names = [name.removeprefix("load: ") for name in configuration.odd.split(" and ")]
    of_flowrl = {*fuzz_configurations.ARGUMENTS, *POLICY_ARGUMENTS}
    return all(name not in of_flowrl or name in _SACS_ARGUMENTS | _SACS_POLICY_ARGUMENTS for name in names)


def run_sac(configuration: Configuration, folder: Path) -> None:
    odd = configuration.odd.split(" and ")
    arguments = {name: value for name, value in configuration.all_arguments().items() if name in _SACS_ARGUMENTS}
    kwargs = configuration.policy_kwargs
    if isinstance(kwargs, dict) and "policy_kwargs" not in odd:
        kwargs = {name: value for name, value in kwargs.items() if name in _SACS_POLICY_ARGUMENTS}
        # What is valid for FlowRL but not for SAC
        activation_fn = kwargs.get("activation_fn")
        if "activation_fn" not in odd and (activation_fn is None or isinstance(activation_fn, dict)):
            kwargs.pop("activation_fn")
        if "net_arch" not in odd:
            kwargs["net_arch"] = [8]
        arguments["policy_kwargs"] = kwargs
    if "learning_rate" not in odd and callable(arguments["learning_rate"]):
        arguments.pop("learning_rate")
    if not isinstance(arguments["policy"], str):
        arguments["policy"] = "MlpPolicy"
    trial = Trial(configuration, folder)
    model: Any = SAC(env=configuration.env.make(), **arguments)
    total = configuration.total_timesteps
    model.learn(trial.steps(model, 14) if total is None else total, **configuration.learn)
    if configuration.odd == "observation":
        model.predict(configuration.observation)
    model.predict(observations(model.observation_space))
    file = io.BytesIO()
    model.save(file)
    SAC.load(io.BytesIO(file.getvalue()), **configuration.load)
    model.policy.save(folder / "sac.pth")
    type(model.policy).load(folder / "sac.pth")


def compare_with_sac(seed: int, raw: Result, folder: Path) -> str:
    configuration = draw(seed)
    is_later = raw.stage.startswith("late") or raw.stage in ("safe", "checkpoint", "callbacks") or configuration.late
    if not is_sacs_too(configuration) or (
        is_later and raw.stage not in ("make the environment", "construct", "learn", "predict")
    ):
        return ""
    try:
        with isolated(seed, folder):
            run_sac(configuration, folder)
    except (Exception, HangError) as error:
        outcome, _ = judge(error)
        if outcome != "raw":
            return outcome
        innermost = where(error).split(" < ")[0]
        is_same = type(error).__name__ == raw.error and innermost == raw.where.split(" < ")[0]
        return "the same" if is_same else f"raw: {type(error).__name__} in {where(error)}"
    return "ok"


# ----------------------------------------------------------------------------------------------------------------- runs


@contextlib.contextmanager
def isolated(seed: int, folder: Path) -> Iterator[None]:
    """Nothing that one configuration does may reach the next."""

    def give_up(*_: Any) -> None:
        raise HangError(f"more than {PATIENCE} seconds")

    random.seed(seed)
    np.random.seed(seed % 2**32)
    th.manual_seed(seed)
    states, dtype, before = np.geterr(), th.get_default_dtype(), signal.signal(signal.SIGALRM, give_up)
    outside = os.getcwd()
    os.chdir(folder)  # for logs whose folder was not chosen with care
    signal.alarm(PATIENCE)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.alarm(0)
        os.chdir(outside)
        signal.signal(signal.SIGALRM, before)
        np.seterr(**states)  # type: ignore[arg-type]
        th.set_default_dtype(dtype)
        th.set_grad_enabled(True)


def run(seed: int, shows: bool = False) -> Result:
    """
    :param seed: the number of a configuration
    :param shows: print the traceback
    :return: what came of it
    """
    configuration = draw(seed)
    result = Result(seed, configuration.odd, configuration.shown[:200])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trial = Trial(configuration, folder)
        try:
            with isolated(seed, folder):
                trial.run()
        except (Exception, HangError) as error:
            if shows:
                traceback.print_exception(error)
            result.outcome, result.by = judge(error)
            result.error, result.message, result.where = type(error).__name__, str(error)[:500], where(error)
            if result.outcome == "refused" and configuration.must_work:
                result.outcome = "false"
            result.stage = trial.stage
        if result.outcome == "raw":
            result.sac = compare_with_sac(seed, result, folder)
    return result


def summarize(results: list[Result]) -> str:
    """
    :param results: of :func:`run`
    :return: counts of outcomes, and what failed, grouped, with numbers that reproduce it
    """
    lines = [f"{len(results)} configurations, {sum(bool(result.odd) for result in results)} of them with something odd"]
    counts = collections.Counter(result.outcome for result in results)
    own = sum(result.is_sb3s_own for result in results)
    lines.append(", ".join(f"{outcome}: {counts[outcome]}" for outcome in ("ok", "refused", "raw", "false")))
    lines.append(f"raw and SB3's own, as SAC fails in the same way: {own}")
    refusals = collections.Counter((result.by, result.stage) for result in results if result.outcome == "refused")
    lines.append("refused: " + ", ".join(f"{n} by {by} at {stage!r}" for (by, stage), n in refusals.most_common()))
    for outcome in ("false", "raw"):
        groups = collections.defaultdict(list)
        for result in results:
            if result.outcome == outcome:
                groups[result.error, result.where, result.odd, result.stage].append(result)
        for (error, place, odd, stage), group in sorted(groups.items(), key=lambda item: -len(item[1])):
            sac = collections.Counter(result.sac for result in group if result.sac)
            lines.append(f"{outcome} {len(group)}x {error} in {place} at {stage!r}; odd: {odd or 'nothing'}")
            lines += [f"    SAC: {dict(sac)}"] if sac else []
            for result in group[:3]:
                lines.append(f"    {result.seed}: {result.shown[:80]} -> {result.message[:160]!r}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=3000, help="how many configurations")
    parser.add_argument("--seed", type=int, default=0, help="the first one's number")
    parser.add_argument("--output", type=Path, default=None, help="JSON file for all that was not ok")
    parser.add_argument("--only", type=int, default=None, help="show one configuration")
    args = parser.parse_args()
    th.set_num_threads(1)
    if args.only is not None:
        print(draw(args.only))
        print(run(args.only, shows=True))
        return
    start = time.perf_counter()
    results = []
    for seed in range(args.seed, args.seed + args.n):
        results.append(run(seed))
        if results[-1].outcome in ("raw", "false") and not results[-1].is_sb3s_own:
            print(results[-1], file=sys.stderr, flush=True)
    print(summarize(results))
    print(f"{time.perf_counter() - start:.0f} s")
    if args.output is not None:
        args.output.write_text(json.dumps([asdict(result) for result in results if result.outcome != "ok"], indent=1))


if __name__ == "__main__":
    main()
