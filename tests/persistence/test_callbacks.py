"""Habits of Stable-Baselines3's users that work with FlowRL as with SB3's own algorithms."""

import csv
import json

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_flowrl import FlowRL, RecencyReplayBuffer
from tests.models import StepCountingEnv, assert_same, batch_of, make_model, moments, parameters, trained_model


def make_counting_env(n_envs: int = 1) -> DummyVecEnv:
    """Episodes of three steps, of reward 1 each."""
    return DummyVecEnv([lambda: Monitor(StepCountingEnv(terminates=True))] * n_envs)


# --------------------------------------------------------------------------------------------------------------- callbacks


def test_a_checkpoint_holds_all_that_training_needs_to_go_on(tmp_path):
    seen = {}

    def look(locals_, globals_) -> bool:
        if model.num_timesteps == 60:
            seen.update(parameters=parameters(model), moments=moments(model), mean=env.obs_rms.mean.copy())
        return True

    env = VecNormalize(make_vec_env("Pendulum-v1"))
    model = make_model(env=env)
    checkpoints = CheckpointCallback(60, str(tmp_path), name_prefix="run", save_replay_buffer=True, save_vecnormalize=True)
    model.learn(70, callback=[checkpoints, ConvertCallback(look)])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"run_60_steps.zip", "run_replay_buffer_60_steps.pkl", "run_vecnormalize_60_steps.pkl"}

    loaded_env = VecNormalize.load(str(tmp_path / "run_vecnormalize_60_steps.pkl"), make_vec_env("Pendulum-v1"))
    loaded = FlowRL.load(tmp_path / "run_60_steps", env=loaded_env)
    loaded.load_replay_buffer(tmp_path / "run_replay_buffer_60_steps")
    np.testing.assert_array_equal(loaded_env.obs_rms.mean, seen["mean"])
    assert_same(parameters(loaded), seen["parameters"])
    assert_same(moments(loaded), seen["moments"])
    assert loaded.replay_buffer.size() == 59  # callbacks see a step before it is stored
    np.testing.assert_array_equal(loaded.replay_buffer.rewards[:59], model.replay_buffer.rewards[:59])
    n_updates = loaded._n_updates
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded.num_timesteps == 70 and loaded._n_updates == n_updates + 10


@pytest.mark.parametrize("threshold, steps", [(2.5, 20), (3.5, 60)])
def test_training_stops_once_the_evaluated_reward_is_good_enough(threshold, steps):
    stop = StopTrainingOnRewardThreshold(reward_threshold=threshold, verbose=0)
    callback = EvalCallback(make_counting_env(), callback_on_new_best=stop, eval_freq=20, n_eval_episodes=2, verbose=0)
    model = make_model(env=make_counting_env(), learning_starts=10).learn(60, callback=callback)
    assert callback.last_mean_reward == 3
    assert model.num_timesteps == steps


@pytest.mark.parametrize("n_envs", [1, 2])
def test_training_stops_after_so_many_episodes(n_envs):
    model = make_model(env=make_counting_env(n_envs), learning_starts=4)
    model.learn(60, callback=StopTrainingOnMaxEpisodes(max_episodes=5))  # in each environment
    assert model.num_timesteps == 5 * 3 * n_envs


class StopAt(BaseCallback):
    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return self.num_timesteps < self.steps


def test_training_goes_on_after_a_callback_stopped_it():
    model = make_model(learning_starts=10).learn(60, callback=StopAt(20))
    assert model.num_timesteps == 20
    model.learn(60, reset_num_timesteps=False)
    assert model.num_timesteps == 80


# ----------------------------------------------------------------------------------------------------------------- loggers


def test_csv_and_json_hold_the_same_numbers_of_the_run(tmp_path):
    model = make_model(env=make_counting_env(), learning_starts=10)
    model.set_logger(configure(str(tmp_path), ["csv", "json"]))
    model.learn(30, log_interval=2)
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert [row["time/total_timesteps"] for row in rows] == [6, 12, 18, 24, 30]
    assert all(row["rollout/ep_rew_mean"] == row["rollout/ep_len_mean"] == 3 for row in rows)
    # Updates begin after step 11; a row is written before the update of its own step. "train/" is not there until then
    assert [row.get("train/n_updates") for row in rows] == [None, 1, 7, 13, 19]
    assert all(np.isfinite(value) for row in rows for value in row.values())

    with open(tmp_path / "progress.csv", newline="") as file_handler:
        table = list(csv.DictReader(file_handler))
    assert set(table[0]) == {name for row in rows for name in row}
    for row, line in zip(rows, table, strict=True):
        assert {name: float(value) for name, value in line.items() if value} == pytest.approx(row)


# ------------------------------------------------------------------------------------------- environments, rollouts, noise


def test_environments_in_processes_of_their_own_give_the_same_run():
    runs = []
    for vec_env_cls in (DummyVecEnv, SubprocVecEnv):
        env = make_vec_env("Pendulum-v1", n_envs=2, vec_env_cls=vec_env_cls)
        runs.append(parameters(make_model(env=env, gradient_steps=-1).learn(60)))
        env.close()
    assert_same(*runs)


@pytest.mark.parametrize(
    "n_envs, train_freq, gradient_steps, steps, updates",
    [
        (1, 4, 1, 40, 7),  # rollouts end after 4, 8, ... steps, and the first 12 are not learned from
        (2, 4, -1, 48, 40),  # 8 steps a rollout, and 8 updates after each of the last five
        (2, (4, "step"), 3, 48, 15),
        (1, (2, "episode"), -1, 36, 24),  # 6 steps a rollout
        (1, (2, "episode"), 5, 36, 20),
        (3, 1, 0, 36, 0),
    ],
)
def test_number_of_updates(n_envs, train_freq, gradient_steps, steps, updates, monkeypatch):
    model = make_model(
        env=make_counting_env(n_envs), train_freq=train_freq, gradient_steps=gradient_steps, learning_starts=12, batch_size=7
    )
    sizes = []
    assert model.replay_buffer is not None  # for mypy
    sample = model.replay_buffer.sample
    monkeypatch.setattr(
        model.replay_buffer, "sample", lambda size, env=None: sizes.append(size) or sample(size, env=env)  # type: ignore
    )
    model.learn(steps)
    assert model.num_timesteps == steps
    assert sum(sizes) == 7 * updates and model._n_updates == updates
    assert len(set(sizes)) <= 1  # one sample a rollout, for all of its updates


class ActionRecordingEnv(StepCountingEnv):
    def __init__(self):
        super().__init__(terminates=True)
        self.action_space = spaces.Box(np.array([-1, 0], np.float32), np.array([4, 0.5], np.float32))
        self.actions = []

    def step(self, action):
        self.actions.append(action.copy())
        return super().step(action)


def actions_of(n_envs: int, action_noise: ActionNoise | None, learning_starts: int) -> tuple[np.ndarray, FlowRL]:
    """What the environments were given, ``(steps, n_envs, 2)``."""
    envs = [ActionRecordingEnv() for _ in range(n_envs)]
    env = DummyVecEnv([lambda env=env: env for env in envs])  # type: ignore[misc]
    # A policy that never changes, so that runs differ in their action noise only
    model = make_model(env=env, action_noise=action_noise, learning_starts=learning_starts, learning_rate=0.0)
    model.learn(10 * n_envs)
    return np.stack([env.actions for env in envs], axis=1), model


def noise_of(mean: float, n_envs: int, vectorized: bool) -> ActionNoise:
    noise = NormalActionNoise(np.full(2, mean), np.zeros(2))
    return VectorizedActionNoise(noise, n_envs) if vectorized else noise


@pytest.mark.parametrize("learning_starts", [0, 100], ids=["policy", "random"])
@pytest.mark.parametrize("n_envs, vectorized", [(1, False), (2, False), (2, True)])
def test_action_noise_reaches_the_environment_scaled_and_clipped(n_envs, vectorized, learning_starts):
    quiet, model = actions_of(n_envs, None, learning_starts)
    low, high = model.action_space.low, model.action_space.high
    noisy, model = actions_of(n_envs, noise_of(0.3, n_envs, vectorized), learning_starts)
    np.testing.assert_allclose(noisy, np.clip(quiet + 0.3 * (high - low) / 2, low, high), atol=1e-5)
    stored = model.replay_buffer.actions[:10]
    np.testing.assert_allclose(low + (stored + 1) * (high - low) / 2, noisy, atol=1e-5)

    loud, model = actions_of(n_envs, noise_of(10.0, n_envs, vectorized), learning_starts)
    np.testing.assert_array_equal(loud, np.broadcast_to(high, loud.shape))
    assert (model.replay_buffer.actions[:10] == 1).all()


# -------------------------------------------------------------------------------------------------- parameters and memory


def test_parameters_taken_from_one_model_make_another_the_same(tmp_path):
    ours, theirs = trained_model(seed=1), trained_model(seed=2)
    theirs.set_parameters(ours.get_parameters())
    assert_same(parameters(ours), parameters(theirs))
    assert_same(moments(ours), moments(theirs))
    before = parameters(theirs)
    ours.train(2, batch_size=8)
    assert_same(parameters(theirs), before)  # copies, which do not go on with the other model

    ours.save(tmp_path / "model")
    theirs.set_parameters(str(tmp_path / "model"))
    assert_same(parameters(ours), parameters(theirs))
    assert_same(moments(ours), moments(theirs))


@pytest.mark.parametrize("replay_buffer_class", [None, RecencyReplayBuffer])
def test_the_replay_buffer_that_saves_memory_keeps_transitions_whole(replay_buffer_class):
    model = make_model(
        env=StepCountingEnv(terminates=True),
        buffer_size=20,
        replay_buffer_class=replay_buffer_class,
        optimize_memory_usage=True,
        replay_buffer_kwargs=dict(handle_timeout_termination=False),
    ).learn(75)
    assert model.replay_buffer.optimize_memory_usage and model.replay_buffer.full
    batch = batch_of(model, 500)
    goes_on = batch.dones == 0
    assert goes_on.any() and not goes_on.all()
    assert ((batch.observations == 2) == ~goes_on).all()
    # Where an episode has ended, the next one's first observation stands, of which the targets make no use
    assert (batch.next_observations == batch.observations + 1)[goes_on].all()
