"""What a user hands in and SB3's own algorithms take is taken, or refused with a reason and before any work."""

import fractions
import functools
import io
import warnings
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import patch_gym
from torch import nn

from sb3_flowrl import DiagnosticsCallback, FlowActorCriticPolicy, FlowRL, MlpPolicy, ResumableCheckpointCallback
from sb3_flowrl.networks import FlowActor
from tests.models import StepCountingEnv, assert_same, make_model, parameters, trained_model

# ------------------------------------------------------------------------------------------------------- learning rates


@pytest.mark.parametrize(
    "make",
    [
        lambda p: np.where(p > 0.5, 1e-3, 1e-4),
        lambda p: th.where(th.tensor(p) > 0.5, 1e-3, 1e-4),
        lambda p: np.float32(1e-3) if p > 0.5 else np.float64(1e-4),
        lambda p: th.tensor(1e-3, requires_grad=True) if p > 0.5 else np.array(1e-4),
    ],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_a_schedule_may_return_what_float_takes(make, tmp_path):
    model = make_model(learning_rate=make, spread_coef="auto").learn(60)
    optimizers = [model.actor.optimizer, model.critic.optimizer, model.behavior_value.optimizer, model.spread_coef_optimizer]
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == pytest.approx([1e-4] * 4)
    model.save(tmp_path / "model")
    assert FlowRL.load(tmp_path / "model").lr_schedule(1.0) == pytest.approx(1e-3)


@pytest.mark.parametrize("late", [None, "1e-3", b"1", True, np.ones(2), th.ones(2), -1e-3, float("inf"), 1j, [1e-3]])
def test_a_schedule_that_returns_something_else_says_what_and_when(late):
    with pytest.raises(ValueError, match=r"learning_rate returned .* for progress_remaining=1.0. It must return a finite"):
        make_model(learning_rate=lambda progress: late)
    model = make_model(learning_rate=lambda progress: 1e-3 if progress > 0.5 else late)
    with pytest.raises(ValueError, match=r"learning_rate returned .* for progress_remaining=0\.\d+"):
        model.learn(100)


@pytest.mark.parametrize("schedule", [lambda: 1e-3, lambda a, b: 1e-3, lambda *, progress: 1e-3, th.relu, LinearSchedule])
def test_a_schedule_that_does_not_take_the_progress_says_so(schedule):
    with pytest.raises(ValueError, match=r"learning_rate=.* can't be called with the remaining progress"):
        make_model(learning_rate=schedule)


def test_an_error_in_a_schedule_is_not_blamed_on_the_optimizer():
    def schedule(progress: float) -> float:
        raise TypeError("schedule's own")

    with pytest.raises(TypeError, match="schedule's own"):
        MlpPolicy(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,)), schedule)


# -------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("arguments", "plain"),
    [
        # Products of these are out of the bounds of NumPy's small integers
        (dict(batch_size=np.uint8(200), gradient_steps=np.uint8(2)), dict(batch_size=200, gradient_steps=2)),
        (dict(policy_delay=np.int8(2), learning_starts=np.uint8(50)), dict(policy_delay=2, learning_starts=50)),
        (dict(tau=fractions.Fraction(1, 2), gamma=fractions.Fraction(9, 10)), dict(tau=0.5, gamma=0.9)),
        (dict(w2_coef=fractions.Fraction(1, 2), noise_clip=fractions.Fraction(2)), dict(w2_coef=0.5, noise_clip=2.0)),
        (dict(expectile=np.float16(0.5), spread_coef=np.float16(0.5)), dict(expectile=0.5, spread_coef=0.5)),
        (dict(per_sample=np.bool_(False), compile=np.bool_(False)), dict(per_sample=False, compile=False)),
    ],
)
def test_numbers_of_other_classes_are_converted_to_pythons_own(arguments, plain):
    model, twin = make_model(**arguments).learn(60), make_model(**plain).learn(60)
    assert {name: (getattr(model, name), type(getattr(model, name))) for name in plain} == {
        name: (value, type(value)) for name, value in plain.items()
    }
    assert_same(parameters(model), parameters(twin))


# ------------------------------------------------------------------------------------------------------------- networks


@pytest.fixture
def float64_by_default():
    th.set_default_dtype(th.float64)
    yield
    th.set_default_dtype(th.float32)


@pytest.mark.parametrize("spread_coef", ["auto", 0.1])
def test_models_are_made_and_loaded_in_float32_whatever_the_default_is(spread_coef, float64_by_default, tmp_path):
    model = make_model(spread_coef=spread_coef, policy_kwargs=dict(net_arch=[16], activation_fn=nn.PReLU)).learn(60)
    assert {value.dtype for value in parameters(model).values()} == {th.float32} and th.get_default_dtype() == th.float64
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    model.averaged_actor.save(tmp_path / "actor")
    model.save_checkpoint(tmp_path / "run")
    for loaded in (
        FlowRL.load(tmp_path / "model", env=gym.make("Pendulum-v1")),
        MlpPolicy.load(tmp_path / "policy"),
        FlowActor.load(tmp_path / "actor"),
        FlowRL.load_checkpoint(tmp_path / "run", env=gym.make("Pendulum-v1")),
    ):
        np.testing.assert_array_equal(*(each.predict(np.ones(3), deterministic=True)[0] for each in (model, loaded)))
        if isinstance(loaded, FlowRL):
            loaded.learn(10, reset_num_timesteps=False)


def test_images_too(float64_by_default, tmp_path):
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False)
    policy_kwargs = dict(net_arch=[8], features_extractor_kwargs=dict(features_dim=8))
    model = FlowRL("CnnPolicy", env, buffer_size=20, policy_kwargs=policy_kwargs)
    model.save_policy_safe(tmp_path / "safe")
    obs = np.stack([env.observation_space.sample() for _ in range(2)])
    loaded = FlowRL.load_policy_safe(tmp_path / "safe")
    np.testing.assert_array_equal(*(each.predict(obs, deterministic=True)[0] for each in (model, loaded)))


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy", "MultiInputPolicy"])
@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("nett_arch", " Did you mean 'net_arch'?"),
        ("optimiser_class", " Did you mean 'optimizer_class'?"),
        ("observation_space", ""),
        ("lr_schedule", ""),
        (3, ""),
    ],
)
def test_an_argument_that_the_policy_does_not_take_is_refused_with_the_nearest(keyword, hint, policy):
    with pytest.raises(TypeError, match=r"policy_kwargs: \w+Policy\(\) got an unexpected keyword argument") as error:
        FlowRL(policy, "Pendulum-v1", policy_kwargs={keyword: None})
    assert str(error.value).endswith(f"{keyword!r}.{hint}")


def test_a_policy_of_the_users_own_may_take_any_argument():
    class Mine(MlpPolicy):
        def __init__(self, *args, temperature=1.0, **kwargs):
            self.temperature = temperature
            super().__init__(*args, **kwargs)

    model = FlowRL(Mine, "Pendulum-v1", policy_kwargs=dict(net_arch=[16], temperature=2.0))
    assert model.policy.temperature == 2.0


def leaky() -> nn.Module:
    return nn.LeakyReLU(0.2)


@pytest.mark.parametrize(
    "activation_fn",
    [
        functools.partial(nn.LeakyReLU, 0.2),
        leaky,
        lambda: nn.LeakyReLU(0.2),
        dict(pi=functools.partial(nn.LeakyReLU, 0.2), qf=leaky),
    ],
)
def test_an_activation_may_be_any_function_that_makes_a_module(activation_fn, tmp_path):
    model = make_model(policy_kwargs=dict(net_arch=[16], activation_fn=activation_fn)).learn(60)
    assert model.actor.velocity_net[2].negative_slope == 0.2
    assert model.behavior_critic.networks[2].layers[0].negative_slope == 0.2
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model")
    np.testing.assert_array_equal(*(each.predict(np.ones(3), deterministic=True)[0] for each in (model, loaded)))


def test_a_policy_with_such_an_activation_is_saved_alone_but_has_no_safe_file(tmp_path):
    model = make_model(policy_kwargs=dict(net_arch=(16,), activation_fn=functools.partial(nn.LeakyReLU, 0.2)))
    model.policy.save(tmp_path / "policy")
    loaded = FlowActorCriticPolicy.load(tmp_path / "policy", device="cpu")
    np.testing.assert_array_equal(*(each.predict(np.ones(3), deterministic=True)[0] for each in (model, loaded)))
    with pytest.raises(ValueError, match=r"activation functools.partial\(.*LeakyReLU.* can't be described. Use one of"):
        model.save_policy_safe(tmp_path / "safe")


@pytest.mark.parametrize(
    "activation_fn", [nn.ReLU(), lambda: 3, lambda x: nn.ReLU(), int, "relu", dict(pi=leaky), dict(pi=leaky, qf=3)]
)
def test_what_makes_no_module_is_no_activation(activation_fn):
    with pytest.raises(ValueError, match=r"activation_fn=.* must be a class such as nn.ReLU, a function without arguments"):
        make_model(policy_kwargs=dict(activation_fn=activation_fn))


@pytest.mark.parametrize(
    ("net_arch", "pi", "qf"),
    [
        (dict(pi=(8,), qf=(16, 4)), [8], [16, 4]),
        (dict(pi=(), qf=[4]), [], [4]),
        ((8, 8), [8, 8], [8, 8]),
        (range(2, 5), [2, 3, 4], [2, 3, 4]),
        (dict(pi=[8], qf=[np.int64(4)]), [8], [4]),
    ],
)
def test_layer_widths_may_be_any_sequence(net_arch, pi, qf, tmp_path):
    model = make_model(policy_kwargs=dict(net_arch=net_arch))
    widths = [layer.out_features for layer in model.actor.velocity_net if isinstance(layer, nn.Linear)]
    assert widths == [*pi, 1]
    assert [len(layer.bias[0]) for layer in model.critic.networks if hasattr(layer, "weight") and layer.weight.dim() == 3] == [
        *qf,
        1,
    ]
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    model.save_policy_safe(tmp_path / "safe")
    for loaded in (
        FlowRL.load(tmp_path / "model"),
        MlpPolicy.load(tmp_path / "policy"),
        FlowRL.load_policy_safe(tmp_path / "safe"),
    ):
        np.testing.assert_allclose(*(each.predict(np.ones(3), deterministic=True)[0] for each in (model, loaded)), atol=1e-6)


@pytest.mark.parametrize(
    "net_arch", ["16", b"16", (16, 0), (16.0,), np.ones((2, 2), int), dict(pi=[8]), dict(pi="8", qf=[8]), 16]
)
def test_what_is_no_sequence_of_widths_is_refused(net_arch):
    with pytest.raises(ValueError, match=r"net_arch=[\s\S]* must be a list of layer widths"):
        make_model(policy_kwargs=dict(net_arch=net_arch))


# --------------------------------------------------------------------------------------------------------- environments


@pytest.mark.parametrize("env", [None, 5, object(), gym.Env, [gym.make("Pendulum-v1")], np.zeros(3)])
def test_what_is_no_environment_is_refused(env):
    with pytest.raises(ValueError, match=r"env=.* must be an environment of gymnasium .or of OpenAI's gym"):
        make_model(env=env)


class GymEnv:
    """As of OpenAI's gym 0.26, which has classes of its own for environments and spaces."""

    unwrapped = property(lambda self: self)
    render_mode = None

    def __init__(self):
        self.observation_space = self.action_space = SimpleNamespace(low=-1, high=1, shape=(1,))

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.ones(1, dtype=np.float32), 1.0, self.steps == 4, False, {}


def test_environments_of_openais_gym_are_wrapped_as_sb3_does_it(monkeypatch):
    shimmy = pytest.importorskip("shimmy.openai_gym_compatibility")
    monkeypatch.setattr(patch_gym, "gym_installed", True)
    for module in (patch_gym, shimmy):
        monkeypatch.setattr(module, "gym", SimpleNamespace(Env=GymEnv), raising=False)
    monkeypatch.setattr(shimmy, "GYM_IMPORT_ERROR", None)
    monkeypatch.setattr(shimmy, "_strip_default_wrappers", lambda env: env)
    monkeypatch.setattr(shimmy, "_convert_space", lambda space: spaces.Box(space.low, space.high, space.shape))
    with pytest.warns(UserWarning, match="You provided an OpenAI Gym environment"):
        model = make_model(env=GymEnv())
        model.learn(60, callback=DiagnosticsCallback(every=10, sample_size=8, eval_env=GymEnv()))
    assert isinstance(model.env.envs[0].unwrapped, shimmy.GymV26CompatibilityV0)
    assert (model._n_updates, len(model.ep_info_buffer)) == (10, 15)


# ------------------------------------------------------------------------------------------------------------- learning


class Recorder(BaseCallback):
    def __init__(self):
        super().__init__()
        self.calls: list[str] = []

    def _on_training_start(self) -> None:
        self.calls.append("start")

    def _on_step(self) -> bool:
        self.calls.append("step")
        return True

    def _on_training_end(self) -> None:
        self.calls.append("end")


@pytest.mark.parametrize("total", [0, -1, -2e3, np.int64(-7)])
def test_nothing_left_to_learn_is_nothing_to_do(total):
    model = trained_model()
    before, recorder = parameters(model), Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.learn(total, callback=recorder, reset_num_timesteps=False) is model
    assert recorder.calls == ["start", "end"]
    assert (model.num_timesteps, model._n_updates) == (70, 20)
    assert_same(before, parameters(model))
    assert model.learn(2, reset_num_timesteps=False).num_timesteps == 72


def test_the_recipe_for_killed_runs_may_be_run_once_more(tmp_path):
    def run() -> FlowRL:
        env = make_vec_env(lambda: StepCountingEnv(terminates=True), n_envs=3)
        if any(tmp_path.iterdir()):
            model = FlowRL.load_checkpoint(tmp_path, env)
        else:
            model = make_model(env=env)
        callback = ResumableCheckpointCallback(tmp_path, 30)
        return model.learn(100 - model.num_timesteps, callback=callback, reset_num_timesteps=False)

    first, second = run(), run()
    assert first.num_timesteps == second.num_timesteps == 102
    assert_same(parameters(first), parameters(second))


@pytest.mark.parametrize(("total", "reset"), [(-1, True), (-1e6, True), (-1.5, False), (-np.inf, False), (None, False)])
def test_a_negative_number_of_steps_of_a_new_run_and_what_is_no_whole_number_are_errors(total, reset):
    with pytest.raises(ValueError, match=r"total_timesteps=.* must be a whole number"):
        make_model().learn(total, reset_num_timesteps=reset)


def test_learning_that_ends_before_the_first_update_says_so():
    with pytest.warns(
        UserWarning, match=r"No update was made: learn\(\) ended at step 30.*learning_starts=50.*pass a smaller"
    ):
        model = make_model().learn(30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(40, reset_num_timesteps=False)
        make_model(gradient_steps=0, learning_starts=0).learn(30)


# ------------------------------------------------------------------------------------------------- parameters and files


def test_parameters_without_optimizers_name_those_that_are_missing():
    model, other = make_model(seed=1), make_model(seed=2)
    alone = {"policy": other.policy.state_dict()}
    before = parameters(model)
    names = "'actor.optimizer', 'critic.optimizer', 'behavior_critic.optimizer', 'behavior_value.optimizer'"
    with pytest.raises(
        ValueError, match=rf"{names}, 'spread_coef_optimizer' missing from the given 'policy'.*exact_match=False"
    ):
        model.set_parameters(alone)
    assert_same(before, parameters(model))
    with pytest.raises(ValueError, match=f"{names} missing"):
        make_model(spread_coef=0.0).set_parameters(alone)
    model.set_parameters(alone, exact_match=False)
    assert_same(parameters(other), parameters(model))


@pytest.fixture(scope="module")
def saved() -> bytes:
    file = io.BytesIO()
    make_model(spread_coef=0.0).save(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("keyword", "similar"),
    [("flow_stpes", "flow_steps"), ("learning_rates", "learning_rate"), ("w2coef", "w2_coef"), ("bufer_size", "buffer_size")],
)
def test_load_refuses_an_unknown_keyword_and_names_the_nearest(saved, keyword, similar):
    with pytest.raises(
        TypeError, match=rf"FlowRL.load\(\) got an unexpected keyword argument '{keyword}'. Did you mean '{similar}'"
    ):
        FlowRL.load(io.BytesIO(saved), **{keyword: 5})


def test_load_takes_arguments_and_attributes(saved):
    buffer = make_model().replay_buffer
    model = FlowRL.load(
        io.BytesIO(saved),
        device="cpu",
        flow_steps=3,
        seed=3,
        tensorboard_log="logs",
        stats_window_size=7,
        num_timesteps=12,
        n_envs=1,
        replay_buffer=buffer,
        observation_space=spaces.Box(-1, 1, (3,)),
    )
    assert (model.actor.flow_steps, model.seed, model._stats_window_size, model.num_timesteps) == (3, 3, 7, 12)
    assert model.replay_buffer is buffer and model.policy.observation_space == spaces.Box(-1, 1, (3,))
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'xyzzy'\.$"):
        FlowRL.load(io.BytesIO(saved), flow_steps=3, xyzzy=1)


def test_a_derived_class_says_which_keywords_it_takes(saved):
    class Mine(FlowRL):
        def __init__(self, *args, temperature: float = 1.0, **kwargs):
            self.temperature = temperature
            super().__init__(*args, **kwargs)

    assert Mine.load(io.BytesIO(saved), temperature=2.0, flow_steps=2).temperature == 2.0
    with pytest.raises(TypeError, match=r"Mine.load\(\) .* 'temprature'. Did you mean 'temperature'"):
        Mine.load(io.BytesIO(saved), temprature=2.0)
