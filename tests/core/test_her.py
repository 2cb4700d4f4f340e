"""Hindsight experience replay (HER): goals that were missed teach FlowRL how to reach goals."""

import numpy as np
import pytest
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_flowrl import FlowRL
from tests.models import assert_same, moments

HER = dict(replay_buffer_class=HerReplayBuffer, replay_buffer_kwargs=dict(n_sampled_goal=4, goal_selection_strategy="future"))


class RandomGoalEnv(BitFlippingEnv):
    """
    Bits to be flipped to a goal that is another in each episode, within two steps. SB3's own goal is always the same: once
    stumbled upon, it is learned without HER as well.
    """

    def __init__(self, n_bits: int):
        super().__init__(n_bits, continuous=True, max_steps=2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.desired_goal = self._obs_space.sample()
        return self._get_obs(), {}


def make_model(n_bits: int, random_steps: int, seed: int, **replay) -> FlowRL:
    return FlowRL(
        "MultiInputPolicy",
        RandomGoalEnv(n_bits),
        learning_rate=3e-3,
        buffer_size=10_000,
        learning_starts=random_steps,
        batch_size=128,
        gamma=0.9,
        policy_kwargs=dict(net_arch=[64, 64]),
        seed=seed,
        device="cpu",
        **replay,
    )


def success_rate(model: FlowRL, n_bits: int) -> float:
    env = RandomGoalEnv(n_bits)
    env.reset(seed=123)
    # Each step that misses costs 1
    rewards, _ = evaluate_policy(model, env, n_eval_episodes=50, return_episode_rewards=True, warn=False)
    return float(np.mean(np.array(rewards) > -env.max_steps))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_goals_are_reached_with_her_and_missed_without(seed):
    """A random action hits one of the 64 goals with a chance of 1/64."""
    rates = {}
    buffers = {"with HER": HER} if seed else {"with HER": HER, "without": {}}  # without, one seed is enough
    for name, replay in buffers.items():
        model = make_model(n_bits=6, random_steps=3_000, seed=seed, **replay)
        rates[f"untrained, {name}"] = success_rate(model, n_bits=6)
        rates[name] = success_rate(model.learn(4_500), n_bits=6)
    assert rates["with HER"] >= 0.9, rates
    assert max(rate for name, rate in rates.items() if name != "with HER") <= 0.4, rates


def test_a_loaded_model_goes_on_learning_from_its_loaded_buffer(tmp_path):
    model = make_model(n_bits=4, random_steps=1_000, seed=0, **HER).learn(1_100)
    before = success_rate(model, n_bits=4)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = FlowRL.load(tmp_path / "model", env=RandomGoalEnv(4), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert_same(moments(model), moments(loaded))
    assert isinstance(loaded.replay_buffer, HerReplayBuffer) and loaded.replay_buffer.env is loaded.env
    assert loaded.replay_buffer.size() == 1_100

    loaded.learn(600, reset_num_timesteps=False)
    assert loaded.num_timesteps == loaded.replay_buffer.size() == 1_700 and loaded._n_updates == 700
    assert before <= 0.6 and success_rate(loaded, n_bits=4) >= 0.8
