"""What tests/fuzz.py tries: configurations of FlowRL, each drawn from a number alone."""

import copy
import functools
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from stable_baselines3.her import HerReplayBuffer
from torch import nn

from sb3_flowrl import (
    FlowActorCriticPolicy,
    FlowRL,
    MlpPolicy,
    NStepRecencyReplayBuffer,
    RecencyReplayBuffer,
    guidance,
)
from tests import fuzz_inputs as inputs

#: Arguments of the policy that aren't FlowRL's too
POLICY_ARGUMENTS = [
    name
    for name in inspect.signature(FlowActorCriticPolicy).parameters
    if name not in inspect.signature(FlowRL).parameters and name not in ("observation_space", "action_space", "lr_schedule")
]
#: Arguments of FlowRL that get odd values; the environment is dealt with by itself
ARGUMENTS = [name for name in inspect.signature(FlowRL).parameters if name not in ("policy", "env", "_init_setup_model")]


@dataclass
class Environment:
    """What an environment is made from."""

    observation_space: spaces.Space
    action_space: spaces.Space
    n_envs: int = 1
    length: int = 5
    terminates: bool = True
    quirk: str | None = None
    quirk_from: int = 0
    wrapper: str = "none"
    is_vectorized: bool = True
    in_its_place: Any = None

    def make(self) -> Any:
        if self.in_its_place is not None:
            return self.in_its_place
        has_goals = isinstance(self.observation_space, spaces.Dict) and "desired_goal" in self.observation_space.spaces
        env_class = inputs.GoalEnv if has_goals else inputs.RandomEnv
        own_end = 10**9 if self.wrapper == "TimeLimit" else self.length

        def make_one() -> Any:
            env: Any = env_class(
                self.observation_space, self.action_space, own_end, self.terminates, self.quirk, self.quirk_from
            )
            return TimeLimit(env, self.length) if self.wrapper == "TimeLimit" else env

        if not self.is_vectorized:
            return make_one()
        env: Any = DummyVecEnv([lambda: Monitor(make_one())] * self.n_envs)
        if self.wrapper == "VecNormalize":
            is_dict = isinstance(self.observation_space, spaces.Dict)
            floats = [key for key, part in _parts(self.observation_space).items() if _is_float_box(part)]
            return VecNormalize(env, norm_obs=bool(floats), norm_obs_keys=floats if is_dict and floats else None)
        return VecFrameStack(env, 2) if self.wrapper == "VecFrameStack" else env


def _parts(space: spaces.Space) -> Mapping[str, spaces.Space]:
    return space.spaces if isinstance(space, spaces.Dict) else {"": space}


def _is_float_box(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)


@dataclass
class Configuration:
    """
    :ivar odd: the name of what was given an invalid or odd value, "" for none
    :ivar shown: that value
    :ivar must_work: whether it is so far only odd that nothing may be refused
    :ivar late: what happens in the midst of training
    :ivar then: what is done after learning, beside predicting
    """

    seed: int
    env: Environment
    policy: Any
    arguments: dict[str, Any]
    policy_kwargs: Any
    odd: str = ""
    shown: str = ""
    must_work: bool = True
    late: str = ""
    then: list[str] = field(default_factory=list)
    learn: dict[str, Any] = field(default_factory=dict)
    total_timesteps: Any = None
    load: dict[str, Any] = field(default_factory=dict)
    observation: Any = None

    def all_arguments(self) -> dict[str, Any]:
        policy_kwargs = {} if self.policy_kwargs is OMITTED else {"policy_kwargs": self.policy_kwargs}
        return {"policy": self.policy, **self.arguments, **policy_kwargs}


OMITTED = object()


# ------------------------------------------------------------------------------------------------- valid configurations


def observation_space(rng: random.Random) -> spaces.Space:
    def box(dtype: Any = np.float32, cls: Any = spaces.Box) -> spaces.Box:
        low, high = rng.choice([(-1, 1), (-np.inf, np.inf), (0, 5), (-3, np.inf)])
        return cls(low, high, rng.choice([(1,), (3,), (2, 2)]), dtype)

    def image() -> spaces.Box:
        return spaces.Box(0, 255, rng.choice([(1, 36, 36), (36, 36, 3)]), np.uint8)

    def discrete() -> spaces.Space:
        return rng.choice([spaces.Discrete(3), spaces.Discrete(5), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)])

    def dictionary(cls: Any = spaces.Dict) -> spaces.Dict:
        keys = rng.sample(["z", "a", "m", "b"], rng.randint(1, 3))
        makers: list[Callable[[], spaces.Space]] = [box, box, lambda: box(np.float64), discrete]
        parts = [(key, rng.choice(makers)()) for key in keys]
        if cls is spaces.Dict and rng.random() < 0.2:
            parts.append((rng.choice(["image", "0"]), image()))
        return cls(parts)

    def named_dictionary() -> spaces.Dict:
        return inputs.NamedDict([(key, box()) for key in rng.sample(["z", "a", "m"], rng.randint(1, 3))])

    def goal() -> spaces.Dict:
        vector = spaces.Box(-1, 1, (2,), np.float32)
        return spaces.Dict([("observation", box()), ("desired_goal", vector), ("achieved_goal", vector)])

    kinds: list[Callable[[], spaces.Space]] = [
        *[box] * 5,
        *[lambda: box(np.float64)] * 3,
        lambda: box(np.float16),
        *[image] * 2,
        *[discrete] * 3,
        *[dictionary] * 3,
        lambda: box(rng.choice([np.float32, np.float64]), inputs.NamedBox),
        named_dictionary,
        goal,
    ]
    return rng.choice(kinds)()


def action_space(rng: random.Random) -> spaces.Box:
    shape = rng.choice([(1,), (1,), (3,), (2, 2), ()])
    dtype = rng.choice([np.float32, np.float32, np.float64])
    size = int(np.prod(shape))
    low = np.array([rng.choice([-1.0, -2.0, 0.0, -0.3, 5.0]) for _ in range(size)])
    width = np.array([rng.choice([2.0, 1.0, 0.01, 7.3]) for _ in range(size)])
    return spaces.Box(low.reshape(shape).astype(dtype), (low + width).reshape(shape).astype(dtype), dtype=dtype)  # type: ignore


def widths(rng: random.Random) -> Any:
    kinds: list[Any] = [[8], [8], [8, 8], [4, 8, 4], [], (8,), dict(pi=[8], qf=[8, 8]), dict(pi=(), qf=(4,)), range(7, 9)]
    return rng.choice([*kinds, [np.int64(8)], None])


def activation(rng: random.Random) -> Any:
    one: list[Any] = [nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.Mish, nn.PReLU, functools.partial(nn.LeakyReLU, 0.2)]
    return rng.choice(
        [*one, None, None, functools.partial(nn.Softplus, beta=2), dict(pi=nn.PReLU, qf=nn.SiLU), dict(pi=nn.ELU, qf=nn.GELU)]
    )


def optimizer(rng: random.Random) -> dict[str, Any]:
    """Of bounded steps, as others diverge on raw pixels, and must."""
    return rng.choice(
        [
            *[{}] * 5,
            dict(optimizer_kwargs={}),
            dict(optimizer_kwargs=dict(eps=1e-5, weight_decay=1e-3, amsgrad=True)),
            dict(optimizer_class=th.optim.AdamW),
            dict(optimizer_class=th.optim.AdamW, optimizer_kwargs=dict(weight_decay=1e-2, foreach=True)),
            dict(optimizer_class=th.optim.RMSprop, optimizer_kwargs=dict(alpha=0.9)),
            dict(optimizer_class=th.optim.Adagrad),
            dict(optimizer_class=th.optim.NAdam),
            dict(optimizer_class=th.optim.RAdam),
            dict(optimizer_class=th.optim.Adamax),
            dict(optimizer_class=th.optim.Rprop),
            dict(optimizer_class=inputs.OwnSGD),
            dict(optimizer_kwargs=dict(fused=False)),
        ]
    )


def extractor(rng: random.Random, space: spaces.Space, is_cnn: bool) -> dict[str, Any]:
    if isinstance(space, (inputs.NamedBox, inputs.NamedDict)):
        return dict(features_extractor_class=inputs.OfNamedSpace)
    if isinstance(space, spaces.Dict):
        return dict(features_extractor_kwargs=dict(cnn_output_dim=8))
    if is_cnn:
        return dict(features_extractor_kwargs=dict(features_dim=8))
    if _is_float_box(space) and rng.random() < 0.3:
        fault = rng.choice(inputs.EXTRACTOR_FAULTS[:4])
        return dict(features_extractor_class=inputs.Sum, features_extractor_kwargs=dict(fault=fault))
    return {}


def replay(rng: random.Random, space: spaces.Space, n_envs: int) -> dict[str, Any]:
    if isinstance(space, spaces.Dict):
        if "desired_goal" in space.spaces and rng.random() < 0.8:
            return dict(replay_buffer_class=HerReplayBuffer, replay_buffer_kwargs=dict(n_sampled_goal=rng.randint(1, 4)))
        return rng.choice([{}, dict(replay_buffer_class=DictReplayBuffer)])
    no_timeouts = dict(handle_timeout_termination=False)
    return rng.choice(
        [
            *[{}] * 5,
            dict(n_steps=rng.randint(2, 4)),
            dict(optimize_memory_usage=True, replay_buffer_kwargs=no_timeouts),
            dict(
                replay_buffer_class=RecencyReplayBuffer,
                replay_buffer_kwargs=dict(recent_share=rng.choice([0, 0.3, 1.0]), recent_size=rng.choice([1, 7, 2048])),
            ),
            dict(replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs=dict(n_steps=3, gamma=0.99), gamma=0.99),
            dict(replay_buffer_class=NStepRecencyReplayBuffer, replay_buffer_kwargs=dict(n_steps=2, gamma=0.9), gamma=0.9),
            dict(replay_buffer_class=inputs.WithoutReplacement),
            dict(replay_buffer_class=inputs.WithDemonstrations),
        ]
    )


def action_noise(rng: random.Random, space: spaces.Box, n_envs: int) -> Any:
    assert space.shape is not None
    if rng.random() < 0.7 or space.shape == ():
        return None  # SB3's noise has one dimension at least
    noise = inputs.normal_noise(space.shape)
    others: list[Any] = [OrnsteinUhlenbeckActionNoise(np.zeros(space.shape), np.full(space.shape, 0.2))]
    return rng.choice([noise, *others, VectorizedActionNoise(noise, n_envs)])


def draw_valid(seed: int, rng: random.Random) -> Configuration:
    space = observation_space(rng)
    acts = action_space(rng)
    is_goal = isinstance(space, spaces.Dict) and "desired_goal" in space.spaces
    is_image = len(space.shape or ()) == 3
    # SB3 doesn't normalize, nor store what is normalized of, spaces of no axis, and images whose channels come last
    can_normalize = all(part.shape and part.shape != (36, 36, 3) for part in _parts(space).values())
    wrappers = ["none"] * 3 + ["TimeLimit"] + ["VecNormalize"] * can_normalize
    wrappers += ["VecFrameStack"] if type(space) is spaces.Box else []
    env = Environment(
        space,
        acts,
        n_envs=rng.choice([1, 1, 2, 3]),
        length=rng.randint(1, 8),
        terminates=rng.random() < 0.5,
        wrapper=rng.choice(wrappers),
    )
    env.is_vectorized = env.n_envs > 1 or env.wrapper.startswith("Vec") or rng.random() < 0.5
    units = ["step", "episode"] if env.n_envs == 1 else ["step"]  # SB3 counts episodes in a single environment only
    frequency = rng.randint(1, 3)
    is_cnn = is_image and rng.random() < 0.7
    schedules: list[Any] = [
        1e-3,
        1e-3,
        3e-4,
        1e-2,
        LinearSchedule(1e-3, 1e-4, 1.0),
        lambda progress: np.asarray(1e-4 + 1e-3 * progress),
    ]
    arguments: dict[str, Any] = dict(
        learning_rate=rng.choice(schedules),
        buffer_size=rng.randint(70 if is_goal else 4 * env.n_envs, 100),
        learning_starts=10 * env.n_envs if is_goal else rng.randint(0, 8),
        batch_size=rng.choice([1, 2, 3, 8, 16]),
        tau=rng.choice([0.95, 0.005, 0.5, 1, np.float32(0.5)]),
        gamma=rng.choice([0.99, 0.9, 0, 1.0]),
        train_freq=rng.choice([1, 1, frequency, *((frequency, unit) for unit in units)]),
        gradient_steps=rng.choice([1, 1, 2, -1]),
        action_noise=action_noise(rng, acts, env.n_envs),
        policy_delay=rng.choice([1, 2, 2, 3]),
        delay_behavior=rng.random() < 0.3,
        actor_tau=rng.choice([0.01, 0.01, None, 1, np.float32(0.5)]),
        flow_steps=rng.choice([1, 1, 2, 3]),
        ode_solver=rng.choice(["euler", "midpoint", "rk4"]),
        expectile=rng.choice([0.9, 0.5, 0.7]),
        w2_coef=rng.choice([0.1, 0.1, 0, 1.0, 3]),
        guidance=rng.choice(["paper", "paper", "reference", inputs.Guidance(rng.choice(inputs.GUIDANCE_RETURNS[:4]))]),
        per_sample=rng.random() < 0.7,
        matching=rng.choice(["action", "pre_squash"]),
        noise_clip=rng.choice([1.0, 1.0, None, 0.5, 3]),
        spread_coef=rng.choice(["auto", "auto", 0, 0.1, "auto_0.1"]),
        target_spread=rng.choice([0.16, 0.05, 0.5]),
        use_sde=False,
        stats_window_size=rng.choice([100, 1]),
        verbose=0,
        seed=rng.choice([None, 0, rng.randrange(2**32)]),
        device=rng.choice(["cpu", "auto", th.device("cpu")]),
    )
    arguments.update(replay(rng, space, env.n_envs))
    others: dict[str, list[Any]] = dict(compile=["auto", False], precision=["float32", "float32_fast", "bfloat16"])
    for name, choices in others.items():
        if rng.random() < 0.5:
            arguments[name] = rng.choice(choices)
    net_arch = widths(rng)
    critic_arch = net_arch["qf"] if isinstance(net_arch, dict) else net_arch
    policy_kwargs: dict[str, Any] = dict(
        net_arch=[8] if net_arch is None else net_arch,
        activation_fn=activation(rng),
        layer_norm=rng.random() < 0.8,
        critic_layout="reference" if critic_arch and len(critic_arch) >= 3 and rng.random() < 0.5 else "mlp",
        n_critics=rng.choice([1, 2, 2, 3]),
        batch_norm=rng.choice([None, True, False]),
        share_features_extractor=rng.random() < 0.3,
        **extractor(rng, space if env.wrapper != "VecFrameStack" else spaces.Discrete(2), is_cnn),
        **optimizer(rng),
    )
    policy: Any = "MlpPolicy"
    if isinstance(space, spaces.Dict):
        policy = "MultiInputPolicy"
    elif is_cnn:
        policy = "CnnPolicy"
    elif rng.random() < 0.2:
        policy = MlpPolicy
    configuration = Configuration(seed, env, policy, arguments, policy_kwargs)
    if rng.random() < 0.3:
        lates = ["float64 default", "freeze actor", "freeze critic", "freeze behavior", "freeze layer", "new head", "new env"]
        configuration.late = rng.choice([*lates, "new seed", "dropout in training mode"])
    for name, share in dict(
        seeds=0.15, save=0.5, policy=0.35, safe=0.35, checkpoint=0.3, again=0.5, callbacks=0.2, parameters=0.2
    ).items():
        if rng.random() < share:
            configuration.then.append(name)
    return configuration


# ------------------------------------------------------------------------------------------------- something odd in them

NAN = float("nan")
# fmt: off
#: Odd for all arguments, or for most.
GENERIC: list[Any] = [
    None, True, False, NAN, float("inf"), -float("inf"), -1, 0, 1, 2, 0.5, 2.0, -0.5,
    "", "text", "auto", b"bytes", (), (1, 2), range(3), 1j, ..., int, th.relu,
    np.int64(2), np.float32(0.5), np.float64(0.5), np.bool_(True), np.int64(-1),
    Fraction(1, 2), Decimal("0.5"), np.float16(0.5), np.str_("auto"), np.datetime64("NaT"),
    np.array(2),
    np.array(0.5),
    np.array([1, 2]),
    np.array([]),
    th.tensor(2),
    th.tensor(0.5),
    th.tensor([0.5, 1.0]),
    [],
    [1],
    [None],
    {},
    {"a": {"b": 1}},
    {1: 2},
    set(),
    object(),
    lambda: None,
    lambda *args, **kwargs: None,
    functools.partial(int),
    nn.ReLU(),
    nn.ReLU,
    spaces.Box(-1, 1, (2,)),
    iter([1]),
    MappingProxyType({"a": 1}),
    Path("somewhere"),
]
#: Odd for one argument.
SPECIAL: dict[str, list[Any]] = dict(
    learning_rate=[
        *(inputs.Schedule(late) for late in (None, -1.0, NAN, "fast", np.ones(2), 1j, True, 0)),
        *(inputs.Schedule(late) for late in (np.array(1e-3), np.float16(1e-3), Fraction(1, 1000))),
        inputs.Schedule(th.tensor(1e-3)),
        inputs.Schedule(th.tensor([1e-3], requires_grad=True)),
        inputs.Schedule([1e-3]),
        inputs.Schedule(inputs.UsersError("the schedule's own")),
        "lin_1e-3",
        1e30,
        lambda: 1e-3,
        LinearSchedule,
    ],
    buffer_size=[1, 2, 3, 1e6, 10**15, 10**30, 20.0, "1e6"],
    learning_starts=[10**30, 1e3, np.uint8(3), 10_000],
    batch_size=[1, 1000, np.uint8(200), 8.0],
    tau=[0, 1, 1e-30, np.array(0.5), 1.0000001],
    gamma=[0, 1, np.float16(0.99), 1.0000001],
    train_freq=[
        TrainFreq(2, TrainFrequencyUnit.STEP),
        TrainFreq(1, TrainFrequencyUnit.EPISODE),
        (1, TrainFrequencyUnit.EPISODE),
        (1, "episode"),
        (1, "episodes"),
        [1, "step"],
        ("1", "step"),
        ("step", 1),
        (0, "step"),
        (np.int64(1), "step"),
        (True, "step"),
        (1, "step", 1),
        TrainFrequencyUnit.STEP,
        1000,
    ],
    gradient_steps=[0, -1, -2, 10, np.uint8(2), 1.0, "auto"],
    action_noise=[
        inputs.normal_noise((5,)),
        inputs.normal_noise((1, 1)),
        inputs.normal_noise((2, 2)),
        inputs.normal_noise((1,), NAN),
        inputs.normal_noise((1,), 1e30),
        inputs.normal_noise((1,), -1.0),
        VectorizedActionNoise(inputs.normal_noise((1,)), 5),
        inputs.OddNoise(None),
        inputs.OddNoise([0.1]),
        inputs.OddNoise(0.1),
        inputs.OddNoise("loud"),
        inputs.OddNoise(np.array([NAN])),
        inputs.OddNoise(th.zeros(1)),
        inputs.OddNoise(inputs.UsersError("the noise's own")),
        OrnsteinUhlenbeckActionNoise,
        lambda: np.zeros(1),
    ],
    replay_buffer_class=[
        ReplayBuffer, DictReplayBuffer, NStepReplayBuffer, RolloutBuffer,
        HerReplayBuffer, RecencyReplayBuffer, NStepRecencyReplayBuffer,
        inputs.WithoutReplacement, inputs.OddBuffer, "HerReplayBuffer",
    ],
    replay_buffer_kwargs=[
        *(dict(fault=fault) for fault in inputs.BUFFER_FAULTS),
        dict(nonsense=1),
        dict(n_steps=3, gamma=0.5),
        dict(n_steps=0),
        dict(recent_share=2),
        dict(recent_size=0),
        dict(handle_timeout_termination=False),
        dict(buffer_size=10),
        dict(device="cpu"),
        dict(n_envs=7),
        dict(n_sampled_goal=-1),
        dict(goal_selection_strategy="past"),
        dict(env=None),
    ],
    optimize_memory_usage=[True, 1],
    n_steps=[1000, np.uint8(3), 3, 3.0],
    policy_delay=[1000, 2.0],
    actor_tau=[0, 1, 1e-30, np.array(0.5), 1.0000001],
    flow_steps=[50, np.int8(2), 1.0],
    ode_solver=["heun", "Euler", ["euler"], np.str_("rk4")],
    expectile=[1, 1e-30, 1 - 1e-16, np.float16(0.5)],
    w2_coef=[1e30, 1e-320, np.float32(1), -0.0],
    guidance=[
        *(inputs.Guidance(returns) for returns in inputs.GUIDANCE_RETURNS),
        guidance.uncapped_guidance,
        functools.partial(guidance.paper_guidance, w2_coef=0.1),
        lambda q_behavior, q_policy: q_behavior,
        lambda *, q_behavior, q_policy, w2_coef: q_behavior,
        inputs.Guidance,
        "Paper",
    ],
    per_sample=["yes", 1],
    matching=["presquash", ["action"]],
    noise_clip=[0, 1e-30, float("inf"), np.float16(1)],
    spread_coef=[
        "auto_", "auto_0", "auto_-1", "auto_inf", "auto_nan", "auto_1e30", "auto_1e-40",
        "auto_0.1_2", "auto 0.1", "auto_x", 1e30, -0.0, "auto_1_0", "auto_٣",
    ],
    target_spread=[0.03, 0.6, 1, 0],
    precision=["float16", th.bfloat16, "bf16", "float64"],
    compile=["True", 1, "never"],
    stats_window_size=[10**30, 1.0],
    tensorboard_log=["", 3, ["log"]],
    policy_kwargs=[
        {"net_arch": [8], "flow_steps": 2},
        {"net_arch": [8], "nett_arch": [8]},
        {"net_arch": [8], "observation_space": None},
        {"net_arch": [8], "lr_schedule": None},
        {"net_arch": [8], "use_sde": True},
        {"net_arch": [8], "log_std_init": -3},
        {"net_arch": [8], "squash_output": True},
        {"net_arch": [8], "policy_kwargs": {"net_arch": [8]}},
        {"net_arch": [8], 3: 4},
        {"net_arch": [8], "optimizer_class": "Adam"},
        MappingProxyType({"net_arch": [8]}),
        [("net_arch", [8])],
        "dict(net_arch=[8])",
    ],
    verbose=[-1, "loud"],
    seed=[2**32 - 1, 2**32, -1, 10**30, "0", 0.0],
    device=[
        "cuda",
        "cuda:7",
        "tpu",
        "meta",
        "mps",
        th.device("meta"),
        0,
    ],
    net_arch=[
        [0], [-1], [8.0], ["8"], [[8]], [True], 8, "8", dict(pi=[8]), dict(vf=[8], pi=[8]),
        [np.array(8)], [1], [1, 1], dict(pi=8, qf=8), dict(pi=[8], qf=[None]),
        dict(pi=[8], qf=[8], vf=[8]), [8, dict(pi=[8], qf=[8])], {8}, np.array([8, 8]),
    ],
    activation_fn=[
        nn.Linear, nn.GLU, nn.LazyLinear, nn.PReLU, nn.Softmax, nn.Identity,
        nn.Bilinear, nn.Dropout, nn.BatchNorm1d, nn.LazyBatchNorm1d, nn.LSTM, nn.RReLU,
        nn.Threshold, nn.Flatten, nn.LogSoftmax, nn.MultiheadAttention, nn.Hardshrink,
        inputs.InfiniteSlope, inputs.Narrowing, inputs.NotFinite, inputs.NoTensor,
        inputs.Doubling, inputs.Raising, nn.Module, nn.Sequential, th.tanh, "relu",
        nn.functional.relu, dict(pi=nn.ReLU), dict(pi=nn.ReLU, qf=None), [nn.ReLU],
        functools.partial(nn.Linear, 8, 8),
        functools.partial(nn.Linear, 8, 3),
        functools.partial(nn.PReLU, 8),
        functools.partial(nn.LayerNorm, 8),
        functools.partial(nn.ReLU, inplace=True),
        functools.partial(nn.LeakyReLU, "0.2"),  # type: ignore[arg-type]
        functools.partial(nn.GLU, dim=0),
        lambda: nn.Softplus(beta=2),
    ],
    layer_norm=["yes"],
    critic_layout=["reference", "cnn"],
    n_critics=[1, 5, 2.0, np.uint8(2)],
    features_extractor_class=[
        FlattenExtractor, CombinedExtractor, NatureCNN, nn.Flatten, nn.Identity,
        inputs.WithoutInit, inputs.WithoutForward, inputs.NeedsArguments,
        inputs.OfNamedSpace, inputs.Sum, "NatureCNN",
        functools.partial(inputs.Sum, fault=""),
    ],
    features_extractor_kwargs=[
        *(dict(fault=fault) for fault in inputs.EXTRACTOR_FAULTS * 2),
        dict(features_dim=0), dict(features_dim=-1), dict(features_dim="8"),
        dict(features_dim=2.5), dict(nonsense=1), dict(observation_space=None),
        dict(cnn_output_dim=0),
        dict(normalized_image=True),
    ],
    optimizer_class=[
        th.optim.SGD, th.optim.ASGD, th.optim.Adadelta, th.optim.SparseAdam,
        th.optim.LBFGS, th.optim.Optimizer, th.optim.Adafactor, inputs.NeedsClosure,
        inputs.OwnSGD, th.optim.lr_scheduler.StepLR, "Adam", nn.Linear,
        getattr(th.optim, "Muon", th.optim.SGD), th.optim.Adamax,
        functools.partial(th.optim.Adam, eps=1e-3),
    ],
    optimizer_kwargs=[
        dict(nonsense=1), dict(lr=1e-3), dict(eps=-1.0), dict(betas=(2, 2)),
        dict(betas=0.9), dict(betas=(0.9,)), dict(eps="small"), dict(eps=0.0),
        dict(capturable=True), dict(differentiable=True), dict(maximize=True),
        dict(fused=True, foreach=True), dict(fused=True, differentiable=True),
        dict(fused="yes"), dict(foreach=True), dict(weight_decay=-1), dict(eps=NAN),
        dict(weight_decay=NAN), dict(weight_decay=1e30), dict(params=[]),
        dict(betas=(0.9, "x")), dict(betas=None), dict(amsgrad="x"), dict(eps=None),
        dict(betas=(th.tensor(0.9), th.tensor(0.999))),
        dict(fused=True, amsgrad=True, maximize=True),
    ],
)

ODD_OBSERVATION_SPACES: list[Any] = [
    spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (2,))]),
    spaces.Dict(a=spaces.Dict(b=spaces.Box(-1, 1, (2,)))),
    spaces.Dict({}),
    spaces.Dict(a=spaces.Tuple([spaces.Discrete(2)])),
    spaces.Dict(a=spaces.Box(-1, 1, (0,)), b=spaces.Box(-1, 1, (2,))),
    spaces.Dict([(1, spaces.Box(-1, 1, (2,))), (0, spaces.Box(-1, 1, (1,)))]),  # type: ignore[list-item]
    spaces.Dict({"a.b": spaces.Box(-1, 1, (2,))}),
    spaces.Dict({"": spaces.Box(-1, 1, (2,))}),
    spaces.Dict({"type": spaces.Box(-1, 1, (2,)), "keys": spaces.Box(-1, 1, (1,))}),
    spaces.Box(-1, 1, ()),
    spaces.Box(-1, 1, (0,)),
    spaces.Box(-1, 1, (2,), np.int8),
    spaces.Box(0, 1, (2,), np.bool_),
    spaces.Box(0, 10**12, (2,), np.int64),
    spaces.Box(0, 255, (8, 8, 3), np.uint8),
    spaces.Box(0, 255, (36, 36), np.uint8),
    spaces.Box(0, 1, (3, 36, 36), np.float32),
    spaces.Box(0, 255, (36, 36, 7), np.uint8),
    spaces.Text(3),
    spaces.Sequence(spaces.Discrete(2)),
    spaces.Graph(spaces.Discrete(2), None),
    spaces.MultiDiscrete(np.array([[2, 3], [2, 2]])),
    spaces.MultiDiscrete([2, 3], start=[1, -1]),
    spaces.MultiBinary([2, 2]),
    spaces.Discrete(1),
    spaces.Discrete(3, start=5),
    spaces.Discrete(2, start=-1),
    spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]),
]
ODD_ACTION_SPACES: list[Any] = [
    spaces.Discrete(3),
    spaces.MultiBinary(3),
    spaces.Dict(a=spaces.Box(-1, 1, (2,))),
    spaces.Tuple([spaces.Box(-1, 1, (2,))]),
    spaces.Box(-np.inf, np.inf, (2,)),
    spaces.Box(-1, np.inf, (2,)),
    spaces.Box(0, 0, (2,)),
    spaces.Box(-1, 1, (2,), np.int64),
    spaces.Box(0, 255, (2,), np.uint8),
    spaces.Box(-1, 1, (2,), np.float16),
    spaces.Box(-1e30, 1e30, (2,), np.float32),
    spaces.Box(-1e300, 1e300, (2,), np.float64),
    spaces.Box(1e8, 1e8 + 8, (2,), np.float32),
    spaces.Box(-1e-30, 1e-30, (2,), np.float32),
    spaces.Box(-1, 1, (0,)),
    inputs.NamedBox(-1, 1, (2,)),
    spaces.Box(np.float64(0.1), np.float64(0.3), (2,), np.float64),
]
# fmt: on


def choose(pool: Sequence[Any], rng: random.Random) -> Any:
    """A copy, as what one configuration does to a value may not reach the next."""
    value = rng.choice(pool)
    try:
        return copy.deepcopy(value)
    except TypeError:  # such as MappingProxyType, which can't be changed either
        return value


def make_odd_argument(configuration: Configuration, rng: random.Random) -> None:
    name = rng.choice([*ARGUMENTS, *POLICY_ARGUMENTS])
    pool = SPECIAL.get(name, []) if rng.random() < 0.65 else GENERIC
    value = choose(pool or GENERIC, rng)
    configuration.odd = name
    configuration.shown = repr(value)
    if name == "policy_kwargs":
        configuration.policy_kwargs = value
    elif name in POLICY_ARGUMENTS:
        configuration.policy_kwargs[name] = value
    else:
        configuration.arguments[name] = value
    adapt(configuration, rng)


def adapt(configuration: Configuration, rng: random.Random) -> None:
    """Let what is odd come to bear."""
    name, arguments, policy_kwargs = configuration.odd, configuration.arguments, configuration.policy_kwargs
    if name == "replay_buffer_kwargs":
        value = arguments[name]
        classes: dict[str, Any] = dict(
            fault=inputs.OddBuffer,
            n_steps=rng.choice([NStepReplayBuffer, NStepRecencyReplayBuffer]),
            recent_share=RecencyReplayBuffer,
            recent_size=RecencyReplayBuffer,
            n_sampled_goal=HerReplayBuffer,
            goal_selection_strategy=HerReplayBuffer,
            env=HerReplayBuffer,
        )
        found = [classes[key] for key in value if key in classes] if isinstance(value, dict) else []
        arguments["replay_buffer_class"] = found[0] if found else None
        arguments.pop("n_steps", None)
        arguments.pop("optimize_memory_usage", None)
        if HerReplayBuffer in found:
            configuration.env.observation_space = spaces.Dict(
                {key: spaces.Box(-1, 1, (2,)) for key in ("observation", "achieved_goal", "desired_goal")}
            )
            configuration.policy = "MultiInputPolicy"
            configuration.env.wrapper = "none"
            policy_kwargs.pop("features_extractor_class", None)
            policy_kwargs.pop("features_extractor_kwargs", None)
    elif name == "replay_buffer_class":
        arguments.pop("replay_buffer_kwargs", None)
        arguments.pop("n_steps", None)
        arguments.pop("optimize_memory_usage", None)
    elif name == "optimize_memory_usage" and rng.random() < 0.7:
        arguments["replay_buffer_kwargs"] = dict(handle_timeout_termination=False)
        arguments["replay_buffer_class"] = None
        arguments["buffer_size"] = rng.randint(1, 6)
        arguments.pop("n_steps", None)
    elif name == "features_extractor_kwargs" and isinstance(policy_kwargs[name], dict) and "fault" in policy_kwargs[name]:
        policy_kwargs["features_extractor_class"] = inputs.Sum
    elif name == "features_extractor_class":
        policy_kwargs.pop("features_extractor_kwargs", None)
    elif name == "optimizer_kwargs" and rng.random() < 0.7:
        policy_kwargs["optimizer_class"] = rng.choice([th.optim.Adam, th.optim.AdamW, th.optim.SGD, th.optim.RMSprop])
    elif name == "optimizer_class":
        policy_kwargs.pop("optimizer_kwargs", None)
    elif (
        name == "activation_fn" and isinstance(policy_kwargs["net_arch"], (list, tuple)) and len(policy_kwargs["net_arch"]) < 1
    ):
        policy_kwargs["net_arch"] = [8]


def make_odd_environment(configuration: Configuration, rng: random.Random) -> None:
    env = configuration.env
    what = rng.choice(["quirk", "quirk", "quirk", "observation_space", "observation_space", "action_space", "env"])
    configuration.odd = what
    if what == "quirk":
        env.quirk, env.quirk_from = rng.choice(inputs.QUIRKS), rng.choice([0, 1, 12])
        configuration.odd, configuration.shown = f"env: {env.quirk}", f"from step {env.quirk_from}"
    elif what == "env":
        others: list[Any] = [
            "NoSuchEnv-v0",
            3,
            inputs.RandomEnv,
            lambda: None,
            {},
            "",
            object(),
            b"CartPole-v1",
            ["Pendulum-v1"],
        ]
        env.in_its_place = rng.choice([*others, "CartPole-v1", spaces.Box(-1, 1, (2,))])
        configuration.shown = repr(env.in_its_place)
    else:
        if what == "observation_space":
            env.observation_space = choose(ODD_OBSERVATION_SPACES, rng)
            configuration.shown = str(env.observation_space)
            is_dict = isinstance(env.observation_space, spaces.Dict)
            configuration.policy = rng.choice(["MultiInputPolicy" if is_dict else "MlpPolicy"] * 4 + ["CnnPolicy"])
            configuration.policy_kwargs.pop("features_extractor_class", None)
            configuration.policy_kwargs.pop("features_extractor_kwargs", None)
            configuration.arguments.pop("replay_buffer_class", None)
            configuration.arguments.pop("replay_buffer_kwargs", None)
        else:
            env.action_space = choose(ODD_ACTION_SPACES, rng)
            configuration.shown = str(env.action_space)
            configuration.arguments["action_noise"] = None
        if env.wrapper.startswith("Vec") and rng.random() < 0.8:
            env.wrapper = "none"


def make_odd_use(configuration: Configuration, rng: random.Random) -> None:
    """Something odd in what is done with the model."""
    generic = choose(GENERIC, rng)
    what = rng.choice(["learn", "total_timesteps", "observation", "observation", "load", "load", "two"])
    configuration.odd, configuration.shown = what, repr(generic)
    if what == "learn":
        name = rng.choice(["callback", "log_interval", "tb_log_name", "reset_num_timesteps", "progress_bar"])
        configuration.odd, configuration.learn = f"learn: {name}", {name: generic}
    elif what == "total_timesteps":
        configuration.total_timesteps = rng.choice([generic, 1e1, "1e3", 0, -3])
        configuration.shown = repr(configuration.total_timesteps)
    elif what == "observation":
        shapes = [(), (0,), (7,), (2, 7), (0, 3)]
        values = [
            np.zeros(rng.choice(shapes)),
            np.full((1, 3), NAN),
            {},
            {"z": np.zeros(1)},
            th.zeros(3),
            [0.0] * 3,
            (0.0, {}),
        ]
        configuration.observation = rng.choice([generic, *values])
        configuration.shown = repr(configuration.observation)
    elif what == "load":
        name = rng.choice([*ARGUMENTS, *POLICY_ARGUMENTS, "flow_stpes", "print_system_info", "force_reset", "custom_objects"])
        value = choose(SPECIAL.get(name, GENERIC) if rng.random() < 0.5 else GENERIC, rng)
        configuration.odd, configuration.shown, configuration.load = f"load: {name}", repr(value), {name: value}
        configuration.then = ["save"]
    else:
        make_odd_argument(configuration, rng)
        first, shown = configuration.odd, configuration.shown
        configuration.policy_kwargs = configuration.policy_kwargs if isinstance(configuration.policy_kwargs, dict) else {}
        configuration.policy_kwargs.setdefault("net_arch", [8])
        make_odd_argument(configuration, rng)
        configuration.odd, configuration.shown = f"{first} and {configuration.odd}", f"{shown} and {configuration.shown}"


def draw(seed: int) -> Configuration:
    """
    :param seed: any integer
    :return: the configuration that belongs to it; equal, but new objects, for each call
    """
    rng = random.Random(seed)
    configuration = draw_valid(seed, rng)
    if rng.random() < 0.35:
        change = rng.choice([make_odd_argument] * 7 + [make_odd_environment] * 3 + [make_odd_use] * 2)
        change(configuration, rng)
        configuration.must_work = False
    if rng.random() < 0.0007:
        configuration.arguments["compile"] = True
    return configuration
