"""Random configurations: every valid one trains, and every invalid one is refused by name before any work."""

import functools
import inspect
import io
import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

import sb3_flowrl
from sb3_flowrl import FlowActorCriticPolicy, FlowRL, RecencyReplayBuffer

EPISODE_LENGTH = 3
# No database and no deadline: the same examples on every machine, however slow it is. (Of the same run, that is: constants of
# all modules that are loaded by then get into the examples, so the file alone sees others than the whole suite.)
SETTINGS: dict[str, Any] = dict(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


class RandomEnv(gym.Env):
    """
    Observations from anywhere in their space, whatever is done; complains of actions that are out of theirs.
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Box):
        self.observation_space, self.action_space = observation_space, action_space
        self.observation_space.seed(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert_inside(action, self.action_space, self.action_space.shape)
        self.steps += 1
        # By a termination or by a time-out
        ends = self.steps == EPISODE_LENGTH
        terminates = bool(ends and self.np_random.integers(2))
        return self.observation_space.sample(), float(self.np_random.normal()), terminates, ends and not terminates, {}


def assert_inside(actions: np.ndarray, space: spaces.Box, shape: tuple[int, ...]) -> None:
    assert actions.shape == shape
    assert (actions >= space.low).all() and (actions <= space.high).all(), (actions, space)


# --------------------------------------------------------------------------------------------------- valid configurations


def vectors() -> st.SearchStrategy[spaces.Space]:
    limits_and_dtypes: list[tuple[float, float, Any]] = [
        (-np.inf, np.inf, np.float32),
        (-np.inf, np.inf, np.float64),
        (-2, 3, np.float16),
        (0, 255, np.uint8),
        (-5, 5, np.int64),
    ]
    boxes = [spaces.Box(low, high, shape, dtype) for low, high, dtype in limits_and_dtypes for shape in ((1,), (3,), (2, 2))]
    discrete = [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)]
    return st.sampled_from([*boxes, *discrete, *discrete])


def images() -> st.SearchStrategy[spaces.Space]:
    return st.sampled_from([spaces.Box(0, 255, shape, np.uint8) for shape in ((1, 36, 36), (36, 36, 3))])


def dicts() -> st.SearchStrategy[spaces.Space]:
    others = st.dictionaries(st.sampled_from("abc"), vectors(), min_size=1)
    with_image = st.builds(lambda others, image: {**others, "image": image}, others, images())
    return st.one_of(others, with_image).map(spaces.Dict)


OBSERVATIONS = dict(vector=vectors(), image=images(), dict=dicts())


@st.composite
def action_spaces(draw) -> spaces.Box:
    shape, dtype = draw(st.sampled_from([*itertools.product([(1,), (3,), (2, 2), ()], [np.float32, np.float64, np.float16])]))
    size = int(np.prod(shape))
    low = np.array(draw(st.lists(st.floats(-5, 5, width=16), min_size=size, max_size=size)))
    width = np.array(draw(st.lists(st.floats(0.125, 20, width=16), min_size=size, max_size=size)))
    return spaces.Box(low.reshape(shape).astype(dtype), (low + width).reshape(shape).astype(dtype), dtype=dtype)


def activations() -> st.SearchStrategy[Any]:
    one = st.sampled_from([nn.ReLU, nn.Tanh, nn.ELU, nn.Mish])
    return st.one_of(one, st.fixed_dictionaries(dict(pi=one, qf=one)))


def net_archs() -> st.SearchStrategy[Any]:
    widths = st.lists(st.integers(1, 8), max_size=4)
    return st.one_of(widths, st.fixed_dictionaries(dict(pi=widths, qf=widths)))


def optimizers() -> st.SearchStrategy[dict[str, Any]]:
    # Of bounded steps: SGD on raw pixels diverges, as it must
    classes_and_kwargs = [
        (th.optim.Adam, dict(eps=1e-5)),
        (th.optim.AdamW, dict(weight_decay=1e-3)),
        (th.optim.Adagrad, dict(lr_decay=0.5)),
        (th.optim.RMSprop, dict(alpha=0.9)),
    ]
    return st.builds(
        lambda choice, default: dict(optimizer_class=choice[0], optimizer_kwargs=None if default else choice[1]),
        st.sampled_from(classes_and_kwargs),
        st.booleans(),
    )


@st.composite
def policies(draw, observation_space: spaces.Space) -> dict[str, Any]:
    net_arch = draw(net_archs())
    critic_arch = net_arch["qf"] if isinstance(net_arch, dict) else net_arch
    policy_kwargs = dict(
        net_arch=net_arch,
        activation_fn=draw(st.one_of(st.none(), activations())),
        layer_norm=draw(st.booleans()),
        critic_layout=draw(st.sampled_from(["mlp", "reference"] if len(critic_arch) >= 3 else ["mlp"])),
        n_critics=draw(st.integers(1, 3)),
        batch_norm=draw(st.booleans()),
        share_features_extractor=draw(st.booleans()),
        normalize_images=draw(st.booleans()),
        **draw(optimizers()),
    )
    if isinstance(observation_space, spaces.Dict):
        return dict(
            policy="MultiInputPolicy", policy_kwargs=dict(policy_kwargs, features_extractor_kwargs=dict(cnn_output_dim=8))
        )
    if len(observation_space.shape or ()) == 3 and draw(st.booleans()):
        return dict(policy="CnnPolicy", policy_kwargs=dict(policy_kwargs, features_extractor_kwargs=dict(features_dim=8)))
    return dict(policy="MlpPolicy", policy_kwargs=policy_kwargs)


REPLAYS: dict[str, st.SearchStrategy[dict[str, Any]]] = dict(
    uniform=st.just({}),
    n_step=st.builds(lambda n: dict(n_steps=n), st.integers(2, 4)),
    memory=st.just(dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False))),
    recency=st.builds(
        lambda share: dict(replay_buffer_class=RecencyReplayBuffer, replay_buffer_kwargs=dict(recent_share=share)),
        st.floats(0, 1),
    ),
)


def action_noises(action_space: spaces.Box) -> st.SearchStrategy[Any]:
    if action_space.shape == ():
        return st.none()  # SB3's noise has one dimension at least
    mean, sigma = np.zeros(action_space.shape), np.full(action_space.shape, 0.5)
    return st.sampled_from([None, NormalActionNoise(mean, sigma), OrnsteinUhlenbeckActionNoise(mean, sigma)])


def constant_guidance(q_behavior: th.Tensor, q_policy: th.Tensor, w2_coef: float) -> th.Tensor:
    return th.full_like(q_policy, w2_coef)


@st.composite
def configurations(draw, observations: str, replay: str) -> tuple[spaces.Space, spaces.Box, int, dict[str, Any]]:
    observation_space, action_space = draw(OBSERVATIONS[observations]), draw(action_spaces())
    n_envs = draw(st.integers(1, 3))
    units = ["step", "episode"] if n_envs == 1 else ["step"]  # SB3 counts episodes in a single environment only
    frequency = draw(st.integers(1, 3))
    learning_rates: list[Any] = [0.0, 3e-4, 1e-2, LinearSchedule(1e-3, 1e-4, 1.0), lambda progress: 1e-3 * progress]
    arguments = dict(
        learning_rate=draw(st.sampled_from(learning_rates)),
        buffer_size=draw(st.integers(12, 60)),
        learning_starts=draw(st.integers(0, 8)),
        batch_size=draw(st.integers(1, 12)),
        tau=draw(st.floats(0, 1)),
        gamma=draw(st.floats(0, 1)),
        train_freq=draw(st.sampled_from([frequency, *((frequency, unit) for unit in units)])),
        gradient_steps=draw(st.sampled_from([-1, 1, 2, 3])),
        action_noise=draw(action_noises(action_space)),
        policy_delay=draw(st.integers(1, 3)),
        delay_behavior=draw(st.booleans()),
        actor_tau=draw(st.none() | st.floats(1e-6, 1)),
        flow_steps=draw(st.integers(1, 3)),
        ode_solver=draw(st.sampled_from(["euler", "midpoint", "rk4"])),
        expectile=draw(st.floats(0, 1, exclude_min=True, exclude_max=True)),
        w2_coef=draw(st.floats(0, 10)),
        # Not the paper's own without a cap: its exponential overflows where critics of raw pixels differ by a hundred
        guidance=draw(st.sampled_from(["paper", "reference", constant_guidance])),
        per_sample=draw(st.booleans()),
        matching=draw(st.sampled_from(["action", "pre_squash"])),
        noise_clip=draw(st.one_of(st.none(), st.floats(0.01, 10))),
        spread_coef=draw(st.sampled_from([0, 0.1, 2, "auto", "auto_0.1"])),
        target_spread=draw(st.floats(0.03, 0.6)),
        precision=draw(st.sampled_from(["auto", "float32", "float32_fast", "bfloat16"])),
        **draw(policies(observation_space)),
        **draw(REPLAYS[replay]),
    )
    return observation_space, action_space, n_envs, arguments


@pytest.mark.parametrize(
    "observations, replay",
    [*(("vector", replay) for replay in REPLAYS), ("image", "uniform"), ("image", "memory"), ("dict", "uniform")],
)
@settings(max_examples=8, **SETTINGS)  # hundreds more are drawn in test_fuzz.py
@given(data=st.data())
def test_every_valid_configuration_trains_saves_loads_and_plays_inside_the_bounds(observations, replay, data):
    configuration = data.draw(configurations(observations, replay))
    observation_space, action_space, n_envs, arguments = configuration
    env = DummyVecEnv([lambda: RandomEnv(observation_space, action_space)] * n_envs)
    model = FlowRL(env=env, seed=0, device="cpu", **arguments)
    longest_rollout = 3 * max(n_envs, EPISODE_LENGTH)
    model.learn(model.learning_starts + 3 * longest_rollout)
    assert model._n_updates >= 3
    for name, value in model.policy.state_dict().items():
        assert th.isfinite(value).all(), name

    file = io.BytesIO()
    model.save(file)
    loaded = FlowRL.load(io.BytesIO(file.getvalue()), device="cpu")
    obs = env.reset()
    for deterministic in (True, False):
        actions, _ = model.predict(obs, deterministic=deterministic)
        assert_inside(actions, action_space, (n_envs, *action_space.shape))
        if deterministic:
            np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], actions)


def test_float16_actions_with_bfloat16_networks():
    env = RandomEnv(spaces.Box(0, 255, (1, 36, 36), np.uint8), spaces.Box(-1, 1, (1,), np.float16))
    policy_kwargs = dict(net_arch=[4], features_extractor_kwargs=dict(features_dim=8))
    model = FlowRL("CnnPolicy", env, precision="bfloat16", learning_starts=4, buffer_size=20, policy_kwargs=policy_kwargs)
    assert model.learn(6)._n_updates == 2


SMALL_SPACES = (spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (2,), np.float32))


def make_model(name: str, value: Any) -> FlowRL:
    policy_kwargs: dict[str, Any] = dict(net_arch=[4])
    arguments: dict[str, Any] = dict(
        policy="MlpPolicy",
        env=RandomEnv(*SMALL_SPACES),
        learning_starts=4,
        batch_size=4,
        buffer_size=20,
        device="cpu",
        policy_kwargs=policy_kwargs,
    )
    (policy_kwargs if name in POLICY_ARGUMENTS else arguments)[name] = value
    return FlowRL(**arguments)


#: Arguments of the policy that aren't FlowRL's too
POLICY_ARGUMENTS = set(inspect.signature(FlowActorCriticPolicy).parameters) - set(inspect.signature(FlowRL).parameters)


@pytest.mark.parametrize(
    "name, value",
    [
        ("learning_rate", 0),
        ("learning_rate", 1),
        ("buffer_size", 1),
        ("learning_starts", 0),
        ("batch_size", 1),
        ("tau", 0),
        ("actor_tau", None),
        ("actor_tau", 1),
        ("tau", 1),
        ("gamma", 0),
        ("gamma", 1),
        ("train_freq", (2, "step")),
        ("train_freq", TrainFreq(2, TrainFrequencyUnit.EPISODE)),  # what a saved model holds
        ("gradient_steps", -1),
        ("gradient_steps", 0),  # collects without learning
        ("noise_clip", float("inf")),
        ("stats_window_size", 1),
        ("seed", 0),
        ("seed", 2**32 - 1),
        ("policy_kwargs", None),
        ("net_arch", []),
        ("optimizer_kwargs", {}),
        # numpy's numbers, of which configurations that were computed or tuned are full
        ("learning_rate", np.float64(1e-3)),
        ("buffer_size", np.int64(20)),
        ("learning_starts", np.int64(4)),
        ("batch_size", np.int32(4)),
        ("tau", np.float32(0.5)),
        ("actor_tau", np.float32(0.5)),
        ("gamma", np.float32(0.5)),
        ("gradient_steps", np.int64(-1)),
        ("n_steps", np.int64(2)),
        ("policy_delay", np.int64(2)),
        ("flow_steps", np.int64(2)),
        ("expectile", np.float32(0.8)),
        ("w2_coef", np.float32(0.1)),
        ("noise_clip", np.float32(0.5)),
        ("per_sample", np.bool_(False)),
        ("layer_norm", np.bool_(False)),
        ("n_critics", np.int64(1)),
        ("net_arch", [np.int64(4)]),
    ],
    ids=str,
)
def test_what_is_odd_but_allowed_stays_allowed(name, value):
    make_model(name, value).learn(10)


# ------------------------------------------------------------------------------------------------- invalid configurations

NAN_OR_INF = st.sampled_from([float("nan"), float("inf"), -float("inf")])
NO_NUMBER = st.one_of(st.text(max_size=4), st.none(), st.booleans(), st.lists(st.integers(), max_size=2), st.just(1j))
# Whole floats such as 1e6 are left open
FRACTIONS = st.floats(-1e6, 1e6).filter(lambda value: value != int(value))
NO_WHOLE_NUMBER = st.one_of(NO_NUMBER, FRACTIONS, NAN_OR_INF)
BELOW_1 = st.one_of(NO_WHOLE_NUMBER, st.integers(max_value=0))
OUTSIDE_0_TO_1 = st.one_of(NO_NUMBER, NAN_OR_INF, st.floats(max_value=-1e-6), st.floats(min_value=1 + 1e-6))
NEGATIVE = st.one_of(NO_NUMBER, NAN_OR_INF, st.floats(max_value=-1e-6))
NO_BOOL = st.one_of(st.sampled_from(["no", "False", ""]), st.integers(2), st.floats(2))
NO_DICT = st.one_of(st.text(min_size=1, max_size=4), st.integers(1), st.lists(st.integers(), min_size=1, max_size=2))
NO_CLASS = st.sampled_from(["relu", 3, int, nn.ReLU(), th.relu])
#: What the width of a layer can't be, and lists of widths with one of these in them
NO_WIDTH = st.one_of(st.integers(max_value=0), FRACTIONS, st.text(max_size=2), st.none(), st.booleans(), st.just([4]))
WIDTHS = st.lists(st.integers(1, 4), max_size=2)
BAD_WIDTHS = st.builds(lambda before, bad, after: [*before, bad, *after], WIDTHS, NO_WIDTH, WIDTHS)


def no_choice_of(*choices: str) -> st.SearchStrategy[Any]:
    return st.one_of(st.text(max_size=8), st.none(), st.integers()).filter(lambda value: value not in choices)


def schedules(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([lambda progress, value=value: value for value in values])


#: For each argument of FlowRL and of its policy, values that make no sense
INVALID: dict[str, st.SearchStrategy[Any]] = dict(
    policy=st.sampled_from(["LstmPolicy", None, 3, dict]),
    env=st.sampled_from([None, 3]),
    # Where numpy's numbers stand here, SB3 can't take them
    learning_rate=st.one_of(NEGATIVE, schedules(-1.0, float("nan"), "fast", None), st.just(np.float32(1e-3))),
    buffer_size=BELOW_1,
    learning_starts=st.one_of(NO_WHOLE_NUMBER, st.integers(max_value=-1)),
    batch_size=BELOW_1,
    tau=OUTSIDE_0_TO_1,
    gamma=OUTSIDE_0_TO_1,
    train_freq=st.one_of(
        BELOW_1,
        st.tuples(BELOW_1, st.sampled_from(["step", "episode"])),
        st.tuples(st.integers(1, 3), no_choice_of("step", "episode")),
        st.sampled_from([(), (1,), (1, "step", "step"), np.int64(2), (np.int64(2), "step")]),
    ),
    gradient_steps=st.one_of(NO_WHOLE_NUMBER, st.integers(max_value=-2)),
    action_noise=st.sampled_from(["normal", 0.1, np.zeros(2), NormalActionNoise, lambda: np.zeros(2)]),
    replay_buffer_class=st.one_of(NO_CLASS, st.just(spaces.Dict)),
    replay_buffer_kwargs=NO_DICT,
    optimize_memory_usage=NO_BOOL,
    n_steps=BELOW_1,
    policy_delay=BELOW_1,
    delay_behavior=NO_BOOL,
    actor_tau=st.one_of(
        st.text(max_size=4), st.booleans(), st.just(float("nan")), st.floats(max_value=0), st.floats(min_value=1 + 1e-6)
    ),
    flow_steps=BELOW_1,
    ode_solver=no_choice_of("euler", "midpoint", "rk4"),
    expectile=st.one_of(OUTSIDE_0_TO_1, st.sampled_from([0, 1])),
    w2_coef=NEGATIVE,
    guidance=no_choice_of("paper", "reference"),
    per_sample=NO_BOOL,
    matching=no_choice_of("action", "pre_squash"),
    noise_clip=st.one_of(st.text(max_size=4), st.booleans(), st.just(float("nan")), st.floats(max_value=0)),
    spread_coef=st.one_of(
        st.sampled_from(["auto_", "auto_0", "auto_-1", "auto_x", "auto_inf", "auto_nan", "auto_" + 400 * "9", "car"]),
        st.none(),
        st.booleans(),
        NAN_OR_INF,
        st.floats(max_value=-1e-6),
    ),
    target_spread=st.one_of(OUTSIDE_0_TO_1, st.sampled_from([0, 1]), st.floats(0.61, 1), st.floats(0, 0.029)),
    precision=no_choice_of("auto", "float32", "float32_fast", "bfloat16"),
    compile=no_choice_of("auto").filter(lambda value: not isinstance(value, (bool, np.bool_))),
    use_sde=NO_BOOL | st.just(True),
    stats_window_size=st.one_of(BELOW_1, st.just(np.int64(3))),
    policy_kwargs=NO_DICT,
    seed=st.one_of(
        st.text(max_size=4), FRACTIONS, NAN_OR_INF, st.integers(max_value=-1), st.integers(2**32), st.just(np.int64(3))
    ),
    device=st.sampled_from(["tpu", "gpu", "cuda:one", "", None, 1.5]),
    net_arch=st.one_of(
        BAD_WIDTHS,
        st.integers(),
        st.text(max_size=4),
        st.dictionaries(st.sampled_from(["pi", "vf"]), WIDTHS),  # without qf
        st.fixed_dictionaries(dict(pi=WIDTHS, qf=BAD_WIDTHS)),
        st.fixed_dictionaries(dict(pi=BAD_WIDTHS, qf=WIDTHS)),
        st.just(dict(pi=4, qf=4)),
    ),
    activation_fn=st.one_of(
        NO_CLASS, st.dictionaries(st.sampled_from(["pi", "vf"]), st.just(nn.ReLU)), st.just(dict(pi="relu", qf=nn.ReLU))
    ),
    layer_norm=NO_BOOL,
    critic_layout=no_choice_of("mlp", "reference"),
    n_critics=BELOW_1,
    batch_norm=NO_BOOL,
    share_features_extractor=NO_BOOL,
    average_actor=NO_BOOL,
    normalize_images=NO_BOOL,
    # LBFGS evaluates a closure again and again
    optimizer_class=st.one_of(NO_CLASS, st.sampled_from([None, nn.Linear, th.optim.LBFGS])),
    optimizer_kwargs=st.one_of(
        NO_DICT, st.sampled_from([dict(nonsense=1), dict(lr=1e-3), dict(eps=-1.0), dict(betas=(2, 2)), dict(eps="small")])
    ),
    features_extractor_class=st.one_of(NO_CLASS, st.sampled_from([None, nn.Linear])),
    features_extractor_kwargs=NO_DICT,
)


#: What stays the saved model's, or is dealt with by SB3's ``load`` before our checks
NOT_CHANGED_BY_LOADING = {"policy", "env", "policy_kwargs", "stats_window_size", "device"}


def assert_refused_in_our_words(error: pytest.ExceptionInfo) -> None:
    """Not by what happens to stumble over it inside torch, numpy or Python."""
    raised_in = Path(str(error.traceback[-1].path))
    packages = [Path(str(module.__file__)).parent for module in (sb3_flowrl, stable_baselines3)]
    assert any(raised_in.is_relative_to(package) for package in packages), raised_in


@pytest.mark.parametrize("name", INVALID)
@settings(max_examples=30, phases=[Phase.generate], **SETTINGS)
@given(data=st.data())
def test_every_invalid_value_is_refused_by_name_before_any_work(name, data):
    value = data.draw(INVALID[name], label=name)
    with pytest.raises((ValueError, TypeError), match=rf"(?i)\b{name}\b") as error:
        make_model(name, value)
    assert_refused_in_our_words(error)


@functools.cache
def saved_model() -> bytes:
    file = io.BytesIO()
    make_model("tau", 0.5).save(file)
    return file.getvalue()


@pytest.mark.parametrize("name", sorted(INVALID.keys() - POLICY_ARGUMENTS - NOT_CHANGED_BY_LOADING))
@settings(max_examples=10, phases=[Phase.generate], **SETTINGS)
@given(data=st.data())
def test_loading_can_not_make_an_argument_invalid(name, data):
    value = data.draw(INVALID[name], label=name)
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b") as error:
        FlowRL.load(io.BytesIO(saved_model()), **{"device": "cpu", name: value})
    assert_refused_in_our_words(error)


def test_every_argument_has_its_invalid_values():
    arguments = {*inspect.signature(FlowRL).parameters, *inspect.signature(FlowActorCriticPolicy).parameters}
    # Any text is a folder and any number a verbosity; the spaces and the schedule are FlowRL's business
    others = {"tensorboard_log", "verbose", "_init_setup_model", "observation_space", "action_space", "lr_schedule"}
    assert arguments - others == set(INVALID)


@pytest.mark.parametrize(
    "action_space",
    [
        # The replay buffer, of the same type, would round the actions that it holds scaled to [-1, 1]
        spaces.Box(-5, 5, (2,), np.int64),
        spaces.Box(0, 255, (2,), np.uint8),
        spaces.Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (2,), np.float32),  # high - low is infinite
        spaces.Box(-1, 1, (0,), np.float32),
    ],
    ids=str,
)
def test_action_spaces_that_can_not_be_scaled_are_refused(action_space):
    with pytest.raises(ValueError, match="action space") as error:
        FlowRL("MlpPolicy", RandomEnv(SMALL_SPACES[0], action_space), buffer_size=20)
    assert_refused_in_our_words(error)


DICT_SPACE = spaces.Dict(vec=SMALL_SPACES[0])


@pytest.mark.parametrize(
    "policy, observation_space, n_envs, arguments, message",
    [
        ("MlpPolicy", DICT_SPACE, 1, {}, "MultiInputPolicy"),
        ("MultiInputPolicy", SMALL_SPACES[0], 1, {}, "MultiInputPolicy"),
        ("CnnPolicy", SMALL_SPACES[0], 1, {}, "CnnPolicy"),
        ("MultiInputPolicy", DICT_SPACE, 1, dict(n_steps=2), "n_steps"),
        ("MultiInputPolicy", DICT_SPACE, 1, dict(optimize_memory_usage=True), "optimize_memory_usage"),
        ("MlpPolicy", SMALL_SPACES[0], 1, dict(optimize_memory_usage=True), "optimize_memory_usage"),
        (
            "MlpPolicy",
            SMALL_SPACES[0],
            1,
            dict(optimize_memory_usage=True, n_steps=2, replay_buffer_kwargs=dict(handle_timeout_termination=False)),
            "optimize_memory_usage",
        ),
        ("MlpPolicy", SMALL_SPACES[0], 2, dict(train_freq=(1, "episode")), "train_freq"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(policy, observation_space, n_envs, arguments, message):
    env = DummyVecEnv([lambda: RandomEnv(observation_space, SMALL_SPACES[1])] * n_envs)
    with pytest.raises((ValueError, TypeError), match=message) as error:
        FlowRL(policy, env, buffer_size=20, **arguments)
    assert_refused_in_our_words(error)
