"""Errors for people: before any work, with the offending value and what to do."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import SACPolicy

import sb3_flowrl.envs  # noqa: F401  # registers its ids
from sb3_flowrl import FlowRL, MlpPolicy, RecencyReplayBuffer
from tests.models import StepCountingEnv, make_model, parameters


@pytest.mark.parametrize(
    "argument, value, message",
    [
        ("flow_steps", 0, "flow_steps=0 must be an integer of at least 1"),
        ("flow_steps", 1.5, "flow_steps=1.5 must be an integer of at least 1"),
        ("flow_steps", True, "flow_steps=True must be an integer"),
        ("actor_tau", 0, "actor_tau=0 must be a number above 0 and at most 1, or None to keep no average"),
        ("policy_delay", 0, "policy_delay=0 must be an integer of at least 1"),
        ("w2_coef", -0.1, "w2_coef=-0.1 must be a finite number of at least 0"),
        ("w2_coef", float("nan"), "w2_coef=nan must be a finite number of at least 0"),
        ("w2_coef", float("inf"), "w2_coef=inf must be a finite number of at least 0"),
        ("w2_coef", "auto", "w2_coef='auto' must be a finite number of at least 0"),
        ("expectile", 0, "expectile=0 must be a number strictly between 0 and 1"),
        ("expectile", 1.0, r"expectile=1\.0 must be a number strictly between 0 and 1"),
        ("ode_solver", "heun", "ode_solver='heun' is unknown; choose one of 'euler', 'midpoint', 'rk4'"),
        ("guidance", "authors", "guidance='authors' is unknown; choose one of 'paper', 'reference', or pass a callable"),
        ("guidance", None, "guidance=None is unknown"),
        ("matching", "latent", "matching='latent' is unknown; choose one of 'action', 'pre_squash'"),
        ("noise_clip", 0, "noise_clip=0 must be a number above 0, or None not to clip"),
        (
            "precision",
            "float16",
            "precision='float16' is unknown; choose one of 'auto', 'float32', 'float32_fast', 'bfloat16'",
        ),
        ("replay_buffer_kwargs", dict(recent_share=1.5), r"recent_share=1\.5 must be a number between 0 and 1"),
        ("replay_buffer_kwargs", dict(recent_size=0), "recent_size=0 must be an integer of at least 1"),
        ("n_steps", 3, r"n_steps=3 has no effect .* Use NStepRecencyReplayBuffer, and replay_buffer_kwargs=dict\(n_steps=3"),
        ("policy_kwargs", dict(flow_steps=2), r"\['flow_steps'\] must be passed to FlowRL itself, not in policy_kwargs"),
    ],
)
def test_arguments(argument, value, message):
    with pytest.raises(ValueError, match=message):
        FlowRL("MlpPolicy", "Pendulum-v1", replay_buffer_class=RecencyReplayBuffer, **{argument: value})


@pytest.mark.parametrize("value", [1.5, -1, float("nan"), float("inf"), "1e6", None, True])
def test_total_timesteps(value):
    model = make_model()
    with pytest.raises(ValueError, match="must be a whole number of at least 0, such as 1_000_000 or 1e6"):
        model.learn(value)
    assert model.num_timesteps == 0


def test_a_policy_of_another_algorithm_is_named():
    with pytest.raises(ValueError, match=r'policy=stable_baselines3.sac.policies.SACPolicy is another algorithm.*"MlpPolicy"'):
        FlowRL(SACPolicy, "Pendulum-v1")


def test_an_environment_without_random_numbers_can_be_trained_in():
    class WithoutGenerator(StepCountingEnv):
        def __getattribute__(self, name):
            if name == "np_random":
                raise NotImplementedError
            return super().__getattribute__(name)

    assert make_model(WithoutGenerator(terminates=True)).learn(60)._n_updates == 10


def test_a_dict_that_sac_has_used_serves_flowrl():
    arguments = dict(policy_kwargs=dict(net_arch=[8]), use_sde=False, buffer_size=10)
    SAC("MlpPolicy", "Pendulum-v1", **arguments)  # which writes use_sde into policy_kwargs
    assert FlowRL("MlpPolicy", "Pendulum-v1", **arguments).policy_kwargs == dict(net_arch=[8])
    with pytest.raises(TypeError, match="unexpected keyword argument 'use_sde'"):
        FlowRL("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(use_sde=True))


def test_a_net_arch_with_a_misspelled_key():
    with pytest.raises(ValueError, match="net_arch"):
        FlowRL("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=dict(pi=[8], qf=[8], behaviors=[4])))


def test_a_buffer_that_can_not_hold_dict_observations():
    with pytest.raises(ValueError, match="replay_buffer_class=RecencyReplayBuffer can't hold Dict observations"):
        FlowRL("MultiInputPolicy", SimpleMultiObsEnv(discrete_actions=False), replay_buffer_class=RecencyReplayBuffer)


def test_discounts_of_a_custom_buffer_have_one_column():
    class Buffer(ReplayBuffer):
        def sample(self, batch_size, env=None):
            return super().sample(batch_size, env)._replace(discounts=th.full((batch_size,), 0.9))

    with pytest.raises(ValueError, match=r"Buffer\.sample\(\) returned discounts of shape \(32,\) with 32 action"):
        make_model(replay_buffer_class=Buffer).learn(60)


def test_a_buffer_of_other_returns_is_refused_before_learning(tmp_path):
    model = make_model(n_steps=3, gamma=0.9)
    model.gamma = 0.99
    with pytest.raises(ValueError, match=r"discounts its 3-step returns by gamma=0\.9, but the model has gamma=0\.99"):
        model.learn(10)
    model.gamma = 0.9
    make_model().save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match="makes 1-step returns, but the model has n_steps=3"):
        model.learn(10)


def test_networks_can_be_made_anew():
    model = make_model().learn(60)
    before = parameters(model)
    model._setup_model()
    assert any(not th.equal(value, before[name]) for name, value in parameters(model).items())
    model.learn(60)


@pytest.mark.parametrize("algorithm", [SAC, FlowRL])
def test_one_dict_of_arguments_serves_sac_and_flowrl(algorithm):
    shared = dict(policy="MlpPolicy", env="Pendulum-v1", use_sde=False, buffer_size=100, policy_kwargs=dict(net_arch=[8]))
    assert not algorithm(**shared).use_sde


@pytest.mark.parametrize(
    "argument, value, error_type, message",
    [
        ("use_sde", True, ValueError, "use_sde=True must be False: FlowRL has no gSDE"),
        ("ent_coef", "auto", TypeError, "'ent_coef'. FlowRL has no entropy. spread_coef, 'auto' by default, takes its place"),
        ("target_entropy", -1, TypeError, "'target_entropy'. FlowRL has no entropy. target_spread takes its place"),
        ("target_update_interval", 2, TypeError, "at every policy_delay-th update"),
        (
            "batch_sise",
            64,
            TypeError,
            r"FlowRL\(\) got an unexpected keyword argument 'batch_sise'. Did you mean 'batch_size'",
        ),
    ],
)
def test_arguments_of_sac_and_misspelled_ones(argument, value, error_type, message):
    with pytest.raises(error_type, match=message):
        FlowRL("MlpPolicy", "Pendulum-v1", **{argument: value})


def foreign_env(module: str) -> gym.Env:
    """An environment whose class comes from a package that is not installed here."""
    return type("Batch", (ActionSpaceEnv,), {"__module__": module})(spaces.Box(-1, 1, (1,)))


@pytest.mark.parametrize(
    "make_env, message",
    [
        (
            lambda: gym.make_vec("Pendulum-v1", num_envs=2),
            r"is a vector environment of gymnasium\. Wrap it in .*GymnasiumVecEnv, or.*make_vec_env",
        ),
        (
            lambda: foreign_env("envpool.python.gymnasium_envpool"),
            r"is a batch of EnvPool's environments\. Wrap it: .*EnvPoolVectorEnv",
        ),
        (lambda: foreign_env("mujoco_playground._src.mjx_env"), "is an environment of MuJoCo Playground"),
        (lambda: "playground/CheetahRun", r"exists only as a vector environment\. Make it with gymnasium\.make_vec, and wrap"),
    ],
)
def test_environments_with_another_interface(make_env, message):
    with pytest.raises(ValueError, match=message):
        FlowRL("MlpPolicy", make_env())


def test_bounds_that_are_too_wide_for_a_squashed_policy_are_warned_of(recwarn):
    wide = spaces.Box(np.array([-1.0, -100.0], np.float32), np.array([1.0, 100.0], np.float32))
    with pytest.warns(UserWarning, match=r"as wide as -100 to 100.*TransformAction.*RescaleAction"):
        make_model(ActionSpaceEnv(wide))
    recwarn.clear()
    make_model(gym.wrappers.RescaleAction(ActionSpaceEnv(wide), -1.0, 1.0))
    make_model(ActionSpaceEnv(spaces.Box(0.0, 100.0, (1,))))
    assert not [each for each in recwarn.list if "as wide as" in str(each.message)]


class ActionSpaceEnv(gym.Env):
    def __init__(self, action_space: spaces.Space):
        self.observation_space = spaces.Box(-1, 1, (2,), dtype=np.float32)
        self.action_space = action_space


@pytest.mark.parametrize(
    "action_space, message",
    [
        (spaces.Discrete(2), r"action space is Discrete\(2\).*use an algorithm such as"),
        (spaces.MultiBinary(3), r"action space is MultiBinary\(3\)"),
        (spaces.Box(-np.inf, np.inf, (2,)), r"must have finite bounds.*low=\[-inf -inf\]"),
        (spaces.Box(np.array([0.0, -1.0], np.float32), np.array([np.inf, 1.0], np.float32)), r"high=\[inf +1"),
        (spaces.Box(np.array([-1.0, 0.5], np.float32), np.array([1.0, 0.5], np.float32)), r"low < high, but low=\[-1"),
    ],
)
@pytest.mark.parametrize("expected_type", [ValueError, AssertionError])  # the latter is what SB3's algorithms raise
def test_action_spaces(action_space, message, expected_type):
    with pytest.raises(expected_type, match=message):
        FlowRL("MlpPolicy", ActionSpaceEnv(action_space))


def test_discrete_actions_of_a_registered_environment():
    with pytest.raises(ValueError, match=r"Discrete\(2\)"):
        FlowRL("MlpPolicy", "CartPole-v1")


def poisoned_model(tensor: str, value: float) -> FlowRL:
    model = make_model().learn(60)
    array = getattr(model.replay_buffer, tensor)
    array[3] = value
    return model


def test_a_loss_that_explodes_never_reaches_the_networks():
    model = make_model().learn(60)
    model.replay_buffer.rewards[:] = 1e30
    before = parameters(model)
    first = model._n_updates + 1
    message = (
        rf"diverged. Losses of updates {first} to {first + 2} \(environment step 60\) are not finite: "
        r"3 of 3 values of critic_loss \(inf\)"
    )
    with pytest.raises(ValueError, match=message + ".* can still be saved"):
        model.train(3, batch_size=8)
    for name, parameter in parameters(model).items():
        # The moments are those of observations and features, which are as finite as ever
        assert th.equal(parameter, before[name]) or ("running_" in name and parameter.isfinite().all()), name


def test_an_actor_loss_that_explodes_never_reaches_the_actor():
    model = make_model(guidance=lambda q_behavior, q_policy, w2_coef: th.full_like(q_policy, th.inf)).learn(30)
    before = parameters(model)
    message = r"of updates 1 to 1 \(environment step 30\) are not finite: 1 of 1 values of actor_loss \(inf\)"
    with pytest.raises(ValueError, match=message):
        model.train(1, batch_size=8)
    for name, parameter in parameters(model).items():
        assert not name.startswith("actor") or th.equal(parameter, before[name]), name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tensor", ["observations", "next_observations", "rewards", "actions"])
def test_data_that_is_not_finite_never_reaches_the_networks(tensor, value):
    model = poisoned_model(tensor, value)
    before = parameters(model)
    n_updates = model._n_updates
    message = rf"`{tensor}` of the replay sample for update {n_updates} \(environment step 60\)"
    with pytest.raises(ValueError, match=message) as error:
        model.train(1, batch_size=2_000)
    assert str(value) in str(error.value)
    assert model._n_updates == n_updates
    for name, parameter in parameters(model).items():
        assert th.equal(parameter, before[name]), name


def test_a_policy_that_does_not_exist_is_told_the_names_of_those_that_do():
    with pytest.raises(
        ValueError, match="policy='Mlp' is unknown; choose one of 'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy', or"
    ):
        FlowRL("Mlp", "Pendulum-v1")


def test_memory_is_not_saved_at_the_cost_of_time_limits_unasked():
    with pytest.raises(ValueError, match=r"replay_buffer_kwargs=dict\(handle_timeout_termination=False\)"):
        FlowRL("MlpPolicy", "Pendulum-v1", optimize_memory_usage=True)


@pytest.mark.parametrize(
    "policy, policy_kwargs",
    [(MlpPolicy, {}), ("MlpPolicy", {}), ("MultiInputPolicy", dict(features_extractor_class=FlattenExtractor))],
)
def test_a_policy_for_vectors_refuses_dicts(policy, policy_kwargs):
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        FlowRL(policy, SimpleMultiObsEnv(discrete_actions=False), policy_kwargs=policy_kwargs)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(ode_solver="heun"), "ode_solver='heun' is unknown"),
        (dict(flow_steps=0), "flow_steps=0 must be"),
        (dict(noise_clip=-1), "noise_clip=-1 must be"),
        (dict(action_space=spaces.Discrete(3)), r"Discrete\(3\)"),
        (dict(critic_layout="reference", net_arch=dict(pi=[8], qf=[8] * 4, behavior=[8, 8])), r"with behavior=\[8, 8\]"),
    ],
)
def test_a_policy_alone_checks_its_arguments(arguments, message):
    spaces_of = dict(observation_space=spaces.Box(-1, 1, (3,)), action_space=spaces.Box(-1, 1, (2,)))
    with pytest.raises(ValueError, match=message):
        MlpPolicy(**{**spaces_of, **arguments}, lr_schedule=lambda _: 1e-3)


def test_the_dicts_of_the_user_stay_as_they_are():
    replay_buffer_kwargs: dict = {}
    policy_kwargs = dict(net_arch=[8])
    model = FlowRL(
        "MlpPolicy", "Pendulum-v1", n_steps=3, replay_buffer_kwargs=replay_buffer_kwargs, policy_kwargs=policy_kwargs
    )
    policy_kwargs["net_arch"] = [16]
    assert replay_buffer_kwargs == {} and model.policy_kwargs["net_arch"] == [8]
