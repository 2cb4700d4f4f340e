"""Where a checkpoint can't be taken between episodes, it ends them as by a time-out, as seldom as it can."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_flowrl import FlowRL, ResumableCheckpointCallback
from sb3_flowrl.checkpoint import random_states
from sb3_flowrl.checkpoint.files import CheckpointError, list_checkpoints
from tests.persistence.runs import (
    DriftEnv,
    assert_same_run,
    drift_envs,
    learn_until_killed,
    make_model,
    resume_and_finish,
    run_fingerprint,
)


@pytest.mark.parametrize("make_env", [lambda: "Pendulum-v1", lambda: drift_envs(1, randomness="nothing moves")])
def test_saving_in_the_middle_of_an_episode_ends_it_as_by_a_time_out(make_env, tmp_path):
    model = make_model(make_env()).learn(75)
    assert model.replay_buffer.dones[74] == 0
    model.save_checkpoint(tmp_path)
    assert model.replay_buffer.dones[74] == 1 and model.replay_buffer.timeouts[74] == 1

    states = random_states.random_states(model)
    ours = run_fingerprint(model.learn(60, reset_num_timesteps=False))
    resumed = FlowRL.load_checkpoint(tmp_path, make_env(), device="cpu")
    assert resumed.replay_buffer.dones[74] == 1
    random_states.restore_random_states(resumed, states)
    assert_same_run(run_fingerprint(resumed.learn(60, reset_num_timesteps=False)), ours)


def episode_lengths(env: DummyVecEnv) -> list[list[int]]:
    return env.env_method("get_episode_lengths")


def limited_envs(*limits: int, **monitor_kwargs) -> DummyVecEnv:
    """Environments whose episodes are as long as `TimeLimit` says."""
    envs = [Monitor(gym.wrappers.TimeLimit(DriftEnv((1_000, 1_000)), limit), **monitor_kwargs) for limit in limits]
    return DummyVecEnv([lambda env=env: env for env in envs])  # type: ignore[misc]


def test_checkpoints_cut_episodes_once_and_say_which_save_freq_would_not(tmp_path):
    env = limited_envs(20, 20, 20, 20)
    callback = ResumableCheckpointCallback(tmp_path, save_freq=25)
    with pytest.warns(UserWarning, match="set save_freq to at least 80") as warned:
        make_model(env, learning_starts=10_000).learn(800, callback=callback)
    assert len([each for each in warned if "unfinished episodes" in str(each.message)]) == 1
    assert episode_lengths(env) == [[20] * 9] * 4  # 52 of 800 steps are lost
    assert list_checkpoints(tmp_path)[-1].name == "checkpoint-000010-step-800"


def test_no_environment_is_kept_from_ending_its_episodes(tmp_path):
    env = limited_envs(7, 45)
    with pytest.warns(UserWarning, match="Episodes end at different times|set save_freq to at least 90"):
        model = make_model(env, learning_starts=10_000).learn(2_000, callback=ResumableCheckpointCallback(tmp_path, 20))
    short, long = episode_lengths(env)
    assert set(short) == {7} and set(long) == {45}
    assert len(short) > 100 and len(long) > 15
    assert len(list_checkpoints(tmp_path)) == 2 and model.num_timesteps == 2_000
    assert list_checkpoints(tmp_path)[-1].name > "checkpoint-000015"


def test_episodes_of_unknown_length_and_rollouts_that_never_begin_between_episodes(tmp_path):
    make = [lambda: DriftEnv((1_000, 1_000))]
    with pytest.warns(
        UserWarning, match=r"the length of an episode times the number of environments \(1\).* not known.* more than 40"
    ):
        make_model(DummyVecEnv(make), learning_starts=500).learn(60, callback=ResumableCheckpointCallback(tmp_path / "a", 20))
    with pytest.warns(UserWarning, match=r"in the middle of a rollout \(train_freq=7\)"):
        model = make_model(limited_envs(10), learning_starts=500, train_freq=7)
        model.learn(60, callback=ResumableCheckpointCallback(tmp_path / "b", 14))


def test_a_run_that_goes_on_does_not_warn_again(tmp_path, recwarn):
    learn_until_killed(make_model(limited_envs(30)), 100, tmp_path, kill_at=25, save_freq=10)
    assert "unfinished episodes" in str(recwarn.pop(UserWarning).message)
    recwarn.clear()
    resume_and_finish(limited_envs(30), 100, tmp_path, ResumableCheckpointCallback(tmp_path, 10))
    assert not recwarn.list


STRICT = dict(allow_early_resets=False)


@pytest.mark.filterwarnings("ignore:The checkpoint at step 40 ends episodes under way")
@pytest.mark.parametrize("in_other_processes", [False, True])
def test_a_monitor_that_forbids_early_resets_forbids_no_checkpoints(in_other_processes, tmp_path):
    def make_env():
        if not in_other_processes:
            return limited_envs(50, 30, **STRICT)
        make = [lambda: gym.wrappers.TransformReward(Monitor(DriftEnv((50, 50)), **STRICT), lambda reward: reward)] * 2
        return SubprocVecEnv(make, start_method="fork")

    envs = [make_env() for _ in range(2)]
    whole = make_model(envs[0]).learn(120, callback=ResumableCheckpointCallback(tmp_path, 20))
    assert len(list_checkpoints(tmp_path)) == 2
    resumed = FlowRL.load_checkpoint(tmp_path, envs[1], device="cpu").learn(40, reset_num_timesteps=False)
    assert resumed.num_timesteps == 160 and whole.num_timesteps == 120
    for env in envs:
        env.close()


@pytest.mark.filterwarnings("error:The environment does not start")
def test_a_monitor_that_forbids_early_resets_leaves_checkpoints_between_episodes_without_a_trace(tmp_path):
    whole = run_fingerprint(make_model(limited_envs(10, **STRICT)).learn(100))
    learn_until_killed(make_model(limited_envs(10, **STRICT)), 100, tmp_path, kill_at=75, save_freq=20)
    env = limited_envs(10, **STRICT)
    env.reset()  # which the user may have done
    assert_same_run(run_fingerprint(resume_and_finish(env, 100, tmp_path)), whole)


class StrictEnv(DriftEnv):
    """Refuses to be reset before its episode has ended."""

    left = 0

    def reset(self, **kwargs):
        if self.left > 0:
            raise RuntimeError("not now")
        return super().reset(**kwargs)


@pytest.mark.parametrize("n_envs, length", [(1, 10), (1, 50), (2, 10), (2, 50)])
def test_an_environment_that_refuses_early_resets_is_trained_without_checkpoints(n_envs, length, tmp_path):
    env = DummyVecEnv([lambda: Monitor(StrictEnv((length, length)))] * n_envs)
    model = make_model(env, buffer_size=1_000, learning_starts=500)
    with pytest.warns(UserWarning, match="reset the environment before its episode has ended.*not now.*Training continues"):
        model.learn(200, callback=ResumableCheckpointCallback(tmp_path, 20))
    assert model.num_timesteps == 200 and list(tmp_path.iterdir()) == []
    ends = np.flatnonzero(model.replay_buffer.dones.any(axis=1)) + 1
    assert (ends % length == 0).all()  # no episode was cut
    returns = [np.sum(each) for each in env.env_method("get_episode_rewards")]
    np.testing.assert_allclose(returns, model.replay_buffer.rewards[: ends[-1]].sum(axis=0), rtol=1e-4)


def test_a_checkpoint_that_can_not_be_written_cuts_no_episode(tmp_path):
    model = make_model(drift_envs(1, lengths=(1_000, 1_000))).learn(40)
    before = run_fingerprint(model)
    (tmp_path / "file").touch()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="No checkpoint can be written"):
            model.save_checkpoint(tmp_path / "file")
    assert run_fingerprint(model)["observations"] == before["observations"]
    assert not model.replay_buffer.timeouts.any()


class OtherGeneratorEnv(DriftEnv):
    """Its generator's state holds arrays."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.np_random = np.random.Generator(np.random.Philox(seed))
        return super().reset(options=options)


def test_environments_with_other_generators_have_checkpoints(tmp_path):
    def run(total: int, folder) -> FlowRL:
        env = DummyVecEnv([OtherGeneratorEnv])
        model = FlowRL.load_checkpoint(folder, env) if list_checkpoints(folder) else make_model(env)
        return model.learn(total - model.num_timesteps, ResumableCheckpointCallback(folder, 20), reset_num_timesteps=False)

    run(40, tmp_path / "stopped")
    assert_same_run(run_fingerprint(run(80, tmp_path / "stopped")), run_fingerprint(run(80, tmp_path / "unstopped")))
