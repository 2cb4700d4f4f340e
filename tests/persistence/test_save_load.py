"""Models that are saved, loaded and given other parameters."""

import base64
import json
import shutil
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import set_random_seed

from sb3_flowrl import FlowRL, MlpPolicy, NStepRecencyReplayBuffer
from sb3_flowrl.export.loading import load_to_predict
from tests.golden import NETWORKS
from tests.models import SMALL, assert_same, make_model, moments, parameters, trained_model

OLD_MODEL = Path(__file__).parents[1] / "data" / "v0_1" / "model.zip"


def test_save_and_load_restore_all_networks_and_optimizers(tmp_path):
    model = trained_model(flow_steps=2, ode_solver="rk4", noise_clip=None, guidance="reference")
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model", env=model.env)
    assert_same(parameters(model), parameters(loaded))
    assert len(moments(model)) > 0
    assert_same(moments(model), moments(loaded))
    assert loaded.flow_steps == loaded.actor.flow_steps == 2
    assert loaded.actor.ode_solver == "rk4" and loaded.actor.noise_clip is None and loaded.guidance == "reference"
    assert loaded._n_updates == model._n_updates and loaded.policy_kwargs == SMALL["policy_kwargs"]
    assert loaded.actor is loaded.policy.actor and loaded.behavior_value is loaded.policy.behavior_value


def test_action_noise_of_several_environments_fits_the_one_it_is_loaded_with(tmp_path):
    noise = NormalActionNoise(np.zeros(1), np.full(1, 0.1))
    make_model(make_vec_env("Pendulum-v1", 4), action_noise=noise, train_freq=1).learn(80).save(tmp_path / "model")
    for n_envs in (1, 2):
        loaded = FlowRL.load(tmp_path / "model", env=make_vec_env("Pendulum-v1", n_envs))
        loaded.learn(60)
        assert np.shape(loaded.action_noise()) == ((1,) if n_envs == 1 else (2, 1))


@pytest.mark.parametrize("before, after", [(1, 3), (3, 1), (3, 2)])
def test_a_model_is_loaded_with_other_n_step_returns(before, after, tmp_path):
    trained_model(n_steps=before).save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model", env="Pendulum-v1", n_steps=after, gamma=0.9)
    assert getattr(loaded.replay_buffer, "n_steps", 1) == loaded.n_steps == after
    assert getattr(loaded.replay_buffer, "gamma", 0.9) == 0.9
    assert loaded.learn(60)._n_updates > 10


def test_a_buffer_of_the_users_choice_stays_when_a_model_is_loaded(tmp_path):
    of_buffer = dict(replay_buffer_class=NStepRecencyReplayBuffer, replay_buffer_kwargs=dict(n_steps=2, recent_size=40))
    trained_model(**of_buffer).save(tmp_path / "model")
    with pytest.raises(ValueError, match="makes 2-step returns, but the model has n_steps=3"):
        FlowRL.load(tmp_path / "model", env="Pendulum-v1", n_steps=3)
    assert FlowRL.load(tmp_path / "model", env="Pendulum-v1").replay_buffer.n_steps == 2


def test_a_model_is_loaded_to_predict_without_its_buffer(tmp_path):
    arguments = dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False))
    trained_model(**arguments).save(tmp_path / "model")
    assert FlowRL.load(tmp_path / "model", buffer_size=1).buffer_size == 1
    goals = BitFlippingEnv(continuous=True)
    model = FlowRL("MultiInputPolicy", goals, replay_buffer_class=HerReplayBuffer, policy_kwargs=SMALL["policy_kwargs"])
    model.save(tmp_path / "her")
    for name in ("model", "her"):
        load_to_predict(tmp_path / name).save_policy_safe(tmp_path / f"{name}.safetensors")


def test_what_flowrl_did_not_save_is_named(tmp_path):
    SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8])).save(tmp_path / "sac")
    with pytest.raises(ValueError, match=r"sac holds a model of another algorithm, with a policy of stable_baselines3\.sac"):
        FlowRL.load(tmp_path / "sac")
    with pytest.raises(FileNotFoundError, match=r"no file '.*missing', nor one with \.zip added"):
        FlowRL.load(tmp_path / "missing")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("photo.txt", "a photo")
    with pytest.raises(ValueError, match=r"photos\.zip is a zip file, but none that holds a model"):
        FlowRL.load(tmp_path / "photos.zip")


def test_training_goes_on_after_loading_as_if_nothing_had_happened(tmp_path):
    model = trained_model()
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model", env=model.env)
    loaded.replay_buffer = model.replay_buffer
    loaded.set_logger(Logger(None, []))
    results = []
    for each in (model, loaded):
        set_random_seed(11)
        for _ in range(3):
            each.train(2, batch_size=16)
        results.append(parameters(each))
    assert_same(*results)


def test_loading_can_change_how_the_flow_is_integrated(tmp_path):
    model = trained_model()
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model", flow_steps=4, ode_solver="euler")
    assert loaded.actor.flow_steps == 4 and loaded.actor.ode_solver == "euler"
    with pytest.raises(ValueError, match="flow_steps=0 must be"):
        FlowRL.load(tmp_path / "model", flow_steps=0)


def test_prediction_without_an_environment(tmp_path):
    model = trained_model()
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model")
    obs = model.observation_space.sample()
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_a_model_that_counts_episodes_predicts_in_several_environments_but_does_not_learn_there(tmp_path):
    make_model(train_freq=(1, "episode")).save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model", env=make_vec_env("Pendulum-v1", n_envs=2))
    assert loaded.predict(loaded.env.reset())[0].shape == (2, 1)
    with pytest.raises(ValueError, match=r"train_freq=.* counts episodes, .* n_envs=2\. Count steps instead"):
        loaded.learn(10)


def test_learning_goes_on_in_another_environment(tmp_path):
    model = trained_model()
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model")
    loaded.set_env(make_vec_env("Pendulum-v1", n_envs=1))
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.num_timesteps == 130 and loaded._n_updates > model._n_updates
    assert FlowRL.load(tmp_path / "model", env="Pendulum-v1").learn(60, reset_num_timesteps=False).num_timesteps == 130


def test_exclude_include_and_custom_objects(tmp_path):
    model = trained_model()
    model.save(tmp_path / "model", exclude=["tensorboard_log"], include=["replay_buffer"])
    custom_objects = dict(learning_rate=1e-5, lr_schedule=lambda _: 1e-5)
    loaded = FlowRL.load(tmp_path / "model", env=model.env, custom_objects=custom_objects)
    assert loaded.replay_buffer.size() == model.replay_buffer.size() == 70
    assert loaded.learning_rate == 1e-5 and loaded.lr_schedule(1) == 1e-5
    with pytest.raises(TypeError, match=r"^custom_objects=tensor\(0.5000\) must be a dict of objects by name, or None.$"):
        FlowRL.load(tmp_path / "model", custom_objects=th.tensor(0.5))


def test_a_callable_guidance_is_saved(tmp_path):
    model = make_model(guidance=lambda q_behavior, q_policy, w2_coef: 0.25 * th.ones_like(q_policy)).learn(60)
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model", env=model.env)
    assert th.equal(loaded.guidance(th.zeros(2, 1), th.zeros(2, 1), 0.1), th.full((2, 1), 0.25))


def test_networks_are_saved_once(tmp_path):
    model = trained_model()
    model.save(tmp_path / "model")
    excluded = set(model._excluded_save_params())
    assert {*NETWORKS, "policy", "replay_buffer"} <= excluded
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert len(archive.read("data")) < 100_000


def test_set_parameters_demands_all_of_them():
    model = trained_model()
    given = model.get_parameters()
    optimizers = {f"{name}.optimizer" for name in ("actor", "critic", "behavior_critic", "behavior_value")}
    assert set(given) == {"policy", *optimizers, "spread_coef_optimizer"}
    for name, message in (
        ("behavior_value.optimizer", "Names of parameters do not match"),
        ("spread_coef_optimizer", "learned"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_parameters({key: value for key, value in given.items() if key != name}, exact_match=True)


def test_parameters_of_a_model_whose_optimisers_are_not_fused_are_learned_on_from():
    plain = make_model(policy_kwargs=dict(net_arch=[16], optimizer_kwargs=dict(eps=1e-5))).learn(60)
    model = make_model()
    model.set_parameters(plain.get_parameters())
    assert_same(parameters(model), parameters(plain))
    model.learn(60)
    assert not th.equal(model.critic.networks[0].weight, plain.critic.networks[0].weight)


def test_discounts_of_the_replay_buffer_have_to_be_the_models(tmp_path):
    with pytest.raises(ValueError, match=r"3-step returns by gamma=0\.99, but .* has gamma=0\.5.*n_steps=3, gamma=0\.5"):
        make_model(gamma=0.5, replay_buffer_class=NStepRecencyReplayBuffer, replay_buffer_kwargs=dict(n_steps=3))
    make_model(n_steps=3).save(tmp_path / "model")
    for of_buffer in ({}, dict(replay_buffer_kwargs=dict(n_steps=3, gamma=0.5))):
        again = FlowRL.load(tmp_path / "model", gamma=0.5, **of_buffer)
        assert (again.replay_buffer.n_steps, again.replay_buffer.gamma) == (3, 0.5)


def test_objects_that_can_not_be_loaded_are_replaced_by_those_that_are_passed(tmp_path):
    trained_model().save(tmp_path / "model")
    _rename_module(tmp_path / "model.zip", "policy_class", "gone_package")
    _rename_module(tmp_path / "model.zip", "replay_buffer_class", "gone_package")
    for changes in ({}, dict(n_steps=3)):
        custom_objects = dict(policy_class=MlpPolicy, replay_buffer_class=None)
        loaded = FlowRL.load(tmp_path / "model", "Pendulum-v1", custom_objects=custom_objects, **changes)
        assert loaded.policy_class is MlpPolicy and loaded.n_steps == changes.get("n_steps", 1)


def test_an_old_file_is_loaded_with_another_policy_class(tmp_path):
    shutil.copy(OLD_MODEL, tmp_path / "model.zip")
    expected = FlowRL.load(tmp_path / "model.zip")
    _rename_module(tmp_path / "model.zip", "policy_class", "gone_package")
    with pytest.raises(ImportError, match="gone_package"):
        FlowRL.load(tmp_path / "model.zip")
    loaded = FlowRL.load(tmp_path / "model.zip", custom_objects=dict(policy_class=type(expected.policy)))
    assert_same(parameters(loaded), parameters(expected))


def _rename_module(path, name: str, module: str) -> None:
    """Let a class in a model's file be of a module that does not exist, as after a package has gone."""
    with zipfile.ZipFile(path) as archive:
        contents = {each: archive.read(each) for each in archive.namelist()}
    data = json.loads(contents["data"])
    data[name][":serialized:"] = base64.b64encode(f"c{module}\nAnything\n.".encode()).decode()
    contents["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in contents.items():
            archive.writestr(each, content)


class Derived(FlowRL):
    """Passes its arguments on."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


def test_arguments_whose_attributes_have_other_names_are_loaded_and_checked(tmp_path):
    policy_kwargs = dict(net_arch=[16], use_sde=False)
    Derived("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs).save(tmp_path / "model")
    loaded = Derived.load(tmp_path / "model", stats_window_size=5, policy_kwargs=policy_kwargs)
    assert loaded._stats_window_size == 5
    with pytest.raises(ValueError, match="stats_window_size='a' must be an int of at least 1"):
        Derived.load(tmp_path / "model", stats_window_size="a")


def test_environments_that_are_no_environments_of_sb3_are_named_wherever_they_are_passed(tmp_path):
    model = make_model()
    model.save(tmp_path / "model")
    vector = gym.make_vec("Pendulum-v1", num_envs=2, vectorization_mode="sync")
    for pass_on in (model.set_env, lambda env: FlowRL.load(tmp_path / "model", env)):
        with pytest.raises(ValueError, match="GymnasiumVecEnv"):
            pass_on(vector)
    model.set_env(gym.make("Pendulum-v1"))


def test_a_replay_buffer_of_another_number_of_environments_is_refused(tmp_path):
    trained_model().save_replay_buffer(tmp_path / "buffer")
    model = make_model(env=make_vec_env("Pendulum-v1", n_envs=2))
    model.load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match=r"transitions of 1 environment\(s\), but the model has n_envs=2"):
        model.learn(10)
