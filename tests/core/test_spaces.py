"""
Observation spaces: the policy gets the environment's own, and only the replay buffer one in float32.

``data/old/unsorted_keys*`` were made at commit d0f9b80, where the policy got a space with sorted keys: a model after 60 steps,
its policy alone, and its safe file, of an environment with the keys z, a and m (the first two compressed afterwards).
``unsorted_keys.npz`` holds observations, and what that commit computed from them.
"""

import gzip
import io
import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from torch import nn

from sb3_flowrl import FlowRL, MultiInputPolicy
from sb3_flowrl.buffers import float32_space
from sb3_flowrl.checks import UnsupportedObservationSpaceError
from sb3_flowrl.export.safe_policy import load_policy_safe
from tests.models import assert_same, parameters

OLD = Path(__file__).parents[1] / "data" / "old" / "unsorted_keys"
SMALL = dict(learning_starts=10, batch_size=8, buffer_size=100, seed=0, device="cpu")


class SpaceEnv(gym.Env):
    """Samples its observation space."""

    def __init__(self, observation_space: spaces.Space):
        self.observation_space = observation_space
        self.action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), float(-(action**2).sum()), False, self.steps == 5, {}

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -np.abs(achieved_goal - desired_goal).sum(axis=-1)


def unsorted_space(dtype=np.float64) -> spaces.Dict:
    return spaces.Dict(
        [("z", spaces.Box(-1, 1, (2,), dtype)), ("a", spaces.Box(-1, 1, (1,), np.float32)), ("m", spaces.Discrete(3))]
    )


class InOrderExtractor(BaseFeaturesExtractor):
    """Takes the parts of an observation as they come."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 6)

    def forward(self, observations):
        return th.cat([part.flatten(1) for part in observations.values()], dim=1)


def model_of(space: spaces.Space, extractor: type[BaseFeaturesExtractor] | None = None, **kwargs) -> FlowRL:
    policy_kwargs = dict(net_arch=[8], **({} if extractor is None else dict(features_extractor_class=extractor)))
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    return FlowRL(policy, SpaceEnv(space), **{**SMALL, **kwargs, "policy_kwargs": policy_kwargs})


# ------------------------------------------------------------------------------------------------------- the order of keys


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_replay_buffer_gives_dict_observations_in_the_order_that_the_policy_acts_on(dtype):
    model = model_of(unsorted_space(dtype), InOrderExtractor).learn(12)
    acted, stored = model.env.reset(), model.replay_buffer.sample(4).observations
    assert list(acted) == list(stored) == list(model.policy.observation_space.spaces) == ["z", "a", "m"]
    np.testing.assert_array_equal(model.actor.features(stored)[:, :2], stored["z"].float())
    np.testing.assert_array_equal(model.actor.features(model.policy.obs_to_tensor(acted)[0])[:, :2], np.float32(acted["z"]))


def test_a_goal_buffer_keeps_the_order_of_keys():
    box = spaces.Box(-1, 1, (2,), np.float64)
    space = spaces.Dict([("observation", box), ("desired_goal", box), ("achieved_goal", box)])
    model = model_of(space, InOrderExtractor, replay_buffer_class=HerReplayBuffer).learn(20)
    assert list(model.replay_buffer.sample(4).observations) == ["observation", "desired_goal", "achieved_goal"]
    assert model.replay_buffer.observations["desired_goal"].dtype == np.float32


def test_a_model_with_unsorted_keys_plays_the_same_once_saved_and_loaded(tmp_path):
    model = model_of(unsorted_space()).learn(20)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    model.save_policy_safe(tmp_path / "safe")
    obs = {key: np.stack([part.sample() for _ in range(9)]) for key, part in unsorted_space().items()}
    expected, _ = model.predict(obs, deterministic=True)
    for loaded in (
        FlowRL.load(tmp_path / "model"),
        MultiInputPolicy.load(tmp_path / "policy"),
        load_policy_safe(tmp_path / "safe"),
    ):
        np.testing.assert_allclose(loaded.predict(obs, deterministic=True)[0], expected, atol=1e-6)


# --------------------------------------------------------------------------------------- files with networks on sorted keys


@pytest.fixture
def old():
    with np.load(f"{OLD}.npz") as arrays:
        return dict(arrays)


def observations_of(old: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: old[key] for key in ("z", "a", "m")}


def test_an_old_model_with_unsorted_keys_plays_and_judges_as_it_did(old):
    model = FlowRL.load(f"{OLD}_model", device="cpu")
    observations = observations_of(old)
    np.testing.assert_allclose(model.predict(observations, deterministic=True)[0], old["predictions"], atol=1e-6)
    with th.no_grad():
        values = model.critic(model.policy.obs_to_tensor(observations)[0], th.as_tensor(old["predictions"]))
    np.testing.assert_allclose(th.cat(values, 1), old["critic"], atol=1e-5)


def test_an_old_model_with_unsorted_keys_plays_as_it_did_after_it_is_trained_on_saved_and_loaded(old, tmp_path):
    model = FlowRL.load(f"{OLD}_model", env=SpaceEnv(unsorted_space()), learning_rate=0.0, device="cpu")
    n_updates = model._n_updates
    model.learn(30).save(tmp_path / "model")
    assert model._n_updates > n_updates
    for loaded in (model, FlowRL.load(tmp_path / "model")):
        np.testing.assert_allclose(loaded.predict(observations_of(old), deterministic=True)[0], old["predictions"], atol=1e-6)


def test_an_old_policy_with_unsorted_keys_plays_as_it_did(old):
    policy = MultiInputPolicy.load(io.BytesIO(gzip.decompress(Path(f"{OLD}_policy.pt.gz").read_bytes())), device="cpu")
    np.testing.assert_allclose(policy.predict(observations_of(old), deterministic=True)[0], old["predictions"], atol=1e-6)


def test_an_old_safe_file_with_unsorted_keys_plays_as_it_did(old):
    actor = load_policy_safe(f"{OLD}.safetensors", device="cpu")
    np.testing.assert_allclose(actor.predict(observations_of(old), deterministic=True)[0], old["predictions"], atol=1e-6)


def test_the_parameters_of_an_old_file_do_not_fit_a_new_model_with_unsorted_keys(tmp_path):
    kwargs = dict(spread_coef=0.0, policy_kwargs=dict(net_arch=[4], n_critics=1, optimizer_class=th.optim.SGD))
    model = FlowRL("MultiInputPolicy", SpaceEnv(unsorted_space()), buffer_size=10, **kwargs)
    before = parameters(model)
    with pytest.raises(ValueError, match=r"sorted order.* Load the file with FlowRL.load"):
        model.set_parameters(f"{OLD}_model")
    assert_same(before, parameters(model))
    model.save(tmp_path / "new")
    with pytest.raises(ValueError, match="sorted order"):
        FlowRL.load(f"{OLD}_model").set_parameters(tmp_path / "new.zip")
    FlowRL.load(f"{OLD}_model").set_parameters(shutil.copy(f"{OLD}_model.zip", tmp_path))


# ------------------------------------------------------------------------------------------------ spaces of derived classes


class UnitBox(spaces.Box):
    """A space that tells extractors more than its bounds."""

    units = "metre"

    def __init__(self, dtype):
        super().__init__(-1, 1, (3,), dtype)


class NamedDict(spaces.Dict):
    name = "robot"


class AskingExtractor(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        assert observation_space.units == "metre"


class AskingDictExtractor(InOrderExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        assert observation_space.name == "robot" and observation_space["z"].units == "metre"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["Box", "Dict"])
def test_the_policy_gets_the_environments_own_space_and_the_replay_buffer_one_in_float32(kind, dtype, tmp_path):
    space: spaces.Space = UnitBox(dtype)
    extractor: type[BaseFeaturesExtractor] = AskingExtractor
    if kind == "Dict":
        space, extractor = NamedDict([("z", space), ("a", UnitBox(dtype))]), AskingDictExtractor
    model = model_of(space, extractor).learn(20)
    assert model.policy.observation_space is model.actor.observation_space is model.env.observation_space
    stored = model.replay_buffer.observations
    assert {part.dtype for part in (stored.values() if kind == "Dict" else [stored])} == {np.dtype(np.float32)}
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model")
    assert type(loaded.policy.observation_space) is type(space)
    obs = {key: part.sample() for key, part in space.items()} if isinstance(space, spaces.Dict) else space.sample()
    np.testing.assert_allclose(
        loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0], atol=1e-6
    )


@pytest.mark.parametrize("kind", ["Box", "Dict"])
def test_a_safe_file_takes_a_float64_space_of_a_derived_class_for_the_plain_one(kind, tmp_path):
    space: spaces.Space = UnitBox(np.float64)
    model = model_of(NamedDict([("z", space), ("a", space)]) if kind == "Dict" else space)
    model.save_policy_safe(tmp_path / "policy")
    actor = load_policy_safe(tmp_path / "policy")
    obs = {"z": np.ones(3), "a": np.zeros(3)} if kind == "Dict" else np.ones(3)
    np.testing.assert_allclose(actor.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0], atol=1e-6)


def test_float64_and_half_precision_observations_reach_the_networks_in_float32():
    seen = set()

    class Spy(nn.Identity):
        def forward(self, x):
            seen.add(x.dtype)
            return x

    for dtype in (np.float16, np.float64):
        model = model_of(spaces.Box(-1, 1, (3,), dtype))
        for network in (model.actor, model.critic, model.behavior_value):
            network.features_extractor.register_module("flatten", nn.Sequential(Spy(), nn.Flatten()))
        model.learn(15).predict(np.ones(3, dtype))
    assert seen == {th.float32}


def test_the_float32_space_keeps_the_order_of_keys():
    space = float32_space(unsorted_space())
    assert isinstance(space, spaces.Dict) and list(space.spaces) == ["z", "a", "m"]
    assert space["z"].dtype == np.float32 and space["m"] == spaces.Discrete(3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_actions_have_the_type_of_their_space(dtype):
    env = SpaceEnv(spaces.Box(-1, 1, (3,)))
    env.action_space = spaces.Box(-0.7, 0.3, (2,), dtype)
    model = FlowRL("MlpPolicy", env, policy_kwargs=dict(net_arch=[8]), **SMALL).learn(20)
    for deterministic in (True, False):
        action, _ = model.predict(np.zeros(3, np.float32), deterministic=deterministic)
        assert action.dtype == dtype and env.action_space.contains(action)


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(5, start=3), spaces.Dict(a=spaces.Discrete(50, start=1)), spaces.MultiDiscrete([2, 3], start=[0, 1])],
)
def test_numbers_that_do_not_start_at_0_are_refused(space):
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    with pytest.raises(UnsupportedObservationSpaceError, match=r"do not start at 0.*Subtract the start"):
        FlowRL(policy, SpaceEnv(space))
