"""Arguments that can't work are an error when the model is made, and not after thousands of steps."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_flowrl import FlowRL
from tests.models import SMALL, assert_same, make_model, parameters


class WithoutGoals(gym.Env):
    observation_space = spaces.Dict(observation=spaces.Box(-1, 1, (2,)), achieved_goal=spaces.Box(-1, 1, (2,)))
    action_space = spaces.Box(-1, 1, (1,))


class WrongWidth(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=5)

    def forward(self, observations):
        return observations


def of_policy(**policy_kwargs):
    return dict(policy_kwargs=dict(net_arch=[16], **policy_kwargs))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            dict(guidance=lambda q_behavior, q_policy, w2_coef: q_policy.numpy()),
            "guidance=.*returned a ndarray; it must return a tensor",
        ),
        (dict(guidance=lambda q_behavior, q_policy, w2_coef: 1.0), "guidance=.*returned a float; it must return a tensor"),
        (dict(guidance=lambda q_behavior, q_policy, w2_coef: None), "guidance=.*returned a NoneType; it must return a tensor"),
        (dict(guidance=lambda q_behavior, q_policy, w2_coef: q_policy.mean()), r"guidance=.*weights of shape \(\)"),
        (dict(guidance=lambda q_behavior: q_behavior), "An update fails with TypeError: .*\n.*guidance="),
        (dict(action_noise=NormalActionNoise(np.zeros(3), np.ones(3))), r"action_noise=.*shape \(3,\).*of shape \(1,\)\."),
        (
            dict(action_noise=VectorizedActionNoise(NormalActionNoise(np.zeros(1), np.ones(1)), 3)),
            r"action_noise=.*shape \(3, 1\).*actions of 1 environment",
        ),
        (dict(replay_buffer_class=HerReplayBuffer), "HerReplayBuffer needs Dict observations with the keys.*desired_goal"),
        (of_policy(optimizer_kwargs=dict(capturable=True)), "An update fails with .*capturable"),
        (of_policy(optimizer_kwargs=dict(differentiable=True)), "An update fails with .*\n.*optimizer_kwargs"),
        (of_policy(features_extractor_class=WrongWidth), "An update fails with .*\n.*features_extractor_class"),
        (of_policy(activation_fn=nn.Linear), "activation_fn=.*Linear.* does not create an activation: TypeError"),
        (of_policy(activation_fn=nn.GLU), r"activation_fn=.*GLU.* turns 16 features into \(8,\)"),
        (of_policy(activation_fn=nn.LazyBatchNorm1d), "activation_fn=.*LazyBatchNorm1d.* does not create an activation"),
        (of_policy(activation_fn=dict(pi=nn.ReLU, qf=nn.GLU)), "activation_fn=.*GLU"),
        (
            dict(optimize_memory_usage=True, buffer_size=1, replay_buffer_kwargs=dict(handle_timeout_termination=False)),
            "optimize_memory_usage=True needs room for two transitions.*buffer_size=1",
        ),
    ],
)
def test_what_can_not_be_trained_with_is_an_error_when_the_model_is_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model(**arguments)


def test_a_goal_that_is_missing_is_an_error_when_the_model_is_made():
    with pytest.raises(ValueError, match=r"needs Dict observations with the keys.*desired_goal"):
        FlowRL("MultiInputPolicy", WithoutGoals(), replay_buffer_class=HerReplayBuffer, **SMALL)


def test_noise_for_several_environments_is_checked_for_all_of_them():
    env = make_vec_env("Pendulum-v1", n_envs=2)
    one = NormalActionNoise(np.zeros(1), np.ones(1))
    for noise in (one, VectorizedActionNoise(one, 2)):
        make_model(env=env, action_noise=noise)
    with pytest.raises(ValueError, match=r"shape \(3, 1\).*actions of 2 environment"):
        make_model(env=env, action_noise=VectorizedActionNoise(one, 3))
    with pytest.raises(ValueError, match="Pass the noise of one environment: it is repeated"):
        make_model(env=env, action_noise=VectorizedActionNoise(one, 3))


class CountingGuidance:
    """A guidance that remembers its calls."""

    calls = 0

    def __call__(self, q_behavior, q_policy, w2_coef):
        self.calls += 1
        return th.ones_like(q_policy)


def test_a_guidance_with_a_state_does_not_see_it():
    model = make_model(guidance=CountingGuidance())
    assert model.guidance.calls == 0
    model.learn(60)
    assert model.guidance.calls > 0


@pytest.mark.parametrize("dtype", [th.bool, th.float64, th.int64])
def test_weights_of_another_type_are_converted(dtype):
    model = make_model(guidance=lambda q_behavior, q_policy, w2_coef: (q_behavior > q_policy).to(dtype)).learn(60)
    same = make_model(guidance=lambda q_behavior, q_policy, w2_coef: (q_behavior > q_policy).float()).learn(60)
    assert_same(parameters(model), parameters(same))


def test_it_leaves_no_trace(monkeypatch):
    noise = NormalActionNoise(np.zeros(1), np.ones(1))
    tried = make_model(action_noise=copy.deepcopy(noise), precision="bfloat16", compile=True)
    states = np.random.get_state()[1].copy(), th.get_rng_state()
    monkeypatch.setattr("sb3_flowrl.flowrl.try_out", lambda model: None)
    not_tried = make_model(action_noise=noise, precision="bfloat16", compile=True)
    assert_same(parameters(tried), parameters(not_tried))
    assert not tried.actor.optimizer.state and tried._n_updates == 0
    assert np.array_equal(states[0], np.random.get_state()[1]) and th.equal(states[1], th.get_rng_state())


class NamedAdam(th.optim.Adam):
    """Has an attribute of its own, which copies of PyTorch's optimizers lose."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = 1.0

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad *= self.scale
        return super().step(closure)


class Embedding(BaseFeaturesExtractor):
    """Looks up the index that its observations hold, in a space that does not say how many there are."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=4)
        self.embedding = nn.Embedding(3, 4)

    def forward(self, observations):
        return self.embedding(observations[:, 0].long())


class IndexEnv(gym.Env):
    observation_space, action_space = spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, dtype=np.float32), {}

    def step(self, action):
        return np.full(1, 2.0, dtype=np.float32), 0.0, True, False, {}


class WithAStepOfItsOwn(FlowRL):
    def _setup_model(self):
        super()._setup_model()
        self.steps_taken = 0

    def _gradient_step(self, batch, steps_actor, diverged):
        self.steps_taken += 1
        return super()._gradient_step(batch, steps_actor, diverged)


def test_what_works_is_not_refused():
    assert make_model(**of_policy(optimizer_class=NamedAdam)).learn(60)._n_updates == 10
    assert make_model(IndexEnv(), **of_policy(features_extractor_class=Embedding)).learn(60)._n_updates == 10
    assert WithAStepOfItsOwn("MlpPolicy", "Pendulum-v1", **SMALL).learn(60).steps_taken == 10

    def most_of_the_batch(q_behavior, q_policy, w2_coef):
        return w2_coef * (q_behavior >= q_behavior.flatten().topk(20).values.min()).float()

    assert make_model(guidance=most_of_the_batch, batch_size=32).learn(60)._n_updates == 10


def test_a_part_that_can_not_be_copied_can_be_trained():
    class Uncopyable(BaseFeaturesExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space, features_dim=3)

        def __deepcopy__(self, memo):
            raise TypeError("can't be copied")

        def forward(self, observations):
            return observations

    assert make_model(policy_kwargs=dict(net_arch=[16], features_extractor_class=Uncopyable)).learn(60)._n_updates == 10
