"""A run that was stopped goes on as if it had not been, and a checkpoint is whole or not there."""

import errno
import importlib
import json
import os
import random
import resource
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from sb3_flowrl import FlowRL, NStepRecencyReplayBuffer, ResumableCheckpointCallback
from sb3_flowrl.checkpoint import files, run_state
from sb3_flowrl.checkpoint.files import CheckpointError, check_writable, find_checkpoint, list_checkpoints, write_checkpoint


class DriftEnv(gym.Env):
    """Episodes of random length, in which a state drifts from a random start; `randomness` says what else is random."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,))
    action_space = spaces.Box(-2.0, 1.0, (2,))

    def __init__(self, lengths: tuple[int, int] = (10, 10), randomness: str = "none"):
        self.lengths, self.randomness, self.own_generator = lengths, randomness, random.Random()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.randomness in ("steps from a fixed start", "nothing moves"):
            self.state, self.left = np.zeros(3), self.lengths[0]
            return self.state.astype(np.float32), {}
        self.state = self.np_random.normal(size=3)
        self.left = int(self.np_random.integers(self.lengths[0], self.lengths[1] + 1))
        if self.randomness == "global":
            self.state += random.random() + np.random.rand()
        if self.randomness == "own":
            self.state += self.own_generator.random()
        return self.state.astype(np.float32), {}

    def step(self, action):
        if self.randomness != "nothing moves":
            self.state = 0.9 * self.state + 0.1 * np.append(action, 1.0)
        if "steps" in self.randomness:
            self.state += 0.1 * self.np_random.normal(size=3)
        self.left -= 1
        return self.state.astype(np.float32), -float(np.abs(self.state).sum()), False, self.left == 0, {}


def make_model(env="Pendulum-v1", policy="MlpPolicy", **kwargs) -> FlowRL:
    arguments = dict(seed=3, learning_starts=30, batch_size=8, buffer_size=150, policy_kwargs=dict(net_arch=[8]), device="cpu")
    return FlowRL(policy, env, **{**arguments, **kwargs})


def run_fingerprint(model: FlowRL) -> dict:
    """Everything that the rest of a run depends on."""
    assert model.replay_buffer is not None and model.ep_info_buffer is not None
    tensors = [*model.policy.state_dict().values()]
    for name in model._get_torch_save_params()[0][1:]:
        optimizer = recursive_getattr(model, name)
        tensors += [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    return dict(
        tensors=[tensor.numpy().tobytes() for tensor in tensors],
        counters=(model.num_timesteps, model._n_updates, model._episode_num),
        sample=model.replay_buffer.sample(16)[1].numpy().tobytes(),
        observations=str(model._last_obs),
        random=(random.random(), np.random.rand(), th.rand(1).item(), model.action_space.sample().tobytes()),
        returns=[info["r"] for info in model.ep_info_buffer],
    )


def assert_same_run(ours: dict, theirs: dict) -> None:
    for name in ours:
        assert ours[name] == theirs[name], name


def scramble_generators() -> None:
    random.seed(99), np.random.seed(99), th.manual_seed(99)


def drift_envs(n_envs: int, **kwargs) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(DriftEnv(**kwargs))] * n_envs)


def ou_noise() -> OrnsteinUhlenbeckActionNoise:
    return OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.1 * np.ones(2))


class ReachEnv(gym.Env):
    """A point that is to go to a place on a line."""

    def __init__(self):
        line = spaces.Box(-1.0, 1.0, (1,))
        self.observation_space = spaces.Dict(dict(observation=line, achieved_goal=line, desired_goal=line))
        self.action_space = spaces.Box(-1.0, 1.0, (1,))

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -(np.abs(achieved_goal - desired_goal) > 0.1).astype(np.float32).squeeze(-1)

    def _observe(self):
        return dict(observation=self.place.copy(), achieved_goal=self.place.copy(), desired_goal=self.goal.copy())

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1.0, 1.0, (2, 1)).astype(np.float32)
        self.left = 10
        return self._observe(), {}

    def step(self, action):
        self.place = np.clip(self.place + 0.2 * action, -1.0, 1.0).astype(np.float32)
        self.left -= 1
        return self._observe(), float(self.compute_reward(self.place, self.goal, {})), False, self.left == 0, {}


# Environment, policy, arguments
RUNS = {
    "pendulum": (lambda: "Pendulum-v1", "MlpPolicy", {}),
    "normalized": (lambda: VecNormalize(drift_envs(2)), "MlpPolicy", {}),
    "frames": (lambda: VecNormalize(VecFrameStack(drift_envs(2), 2)), "MlpPolicy", {}),
    "episodes of random length": (lambda: drift_envs(1, lengths=(3, 9)), "MlpPolicy", dict(train_freq=(1, "episode"))),
    "noisy steps from a fixed start": (lambda: drift_envs(1, randomness="steps from a fixed start"), "MlpPolicy", {}),
    "action noise": (
        lambda: drift_envs(1),
        "MlpPolicy",
        dict(action_noise=ou_noise(), gradient_steps=2, policy_delay=3),
    ),
    "n steps": (lambda: drift_envs(3), "MlpPolicy", dict(n_steps=3, gradient_steps=-1)),
    "recency": (
        lambda: drift_envs(1),
        "MlpPolicy",
        dict(replay_buffer_class=NStepRecencyReplayBuffer, replay_buffer_kwargs=dict(n_steps=2, recent_size=40)),
    ),
    "optimized memory": (
        lambda: drift_envs(1),
        "MlpPolicy",
        dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False)),
    ),
    "her": (lambda: DummyVecEnv([ReachEnv]), "MultiInputPolicy", dict(replay_buffer_class=HerReplayBuffer)),
    "scaled rewards": (lambda: drift_envs(2), "MlpPolicy", dict(scale_rewards=True)),
    "schedule": (
        lambda: drift_envs(1),
        "MlpPolicy",
        dict(precision="bfloat16", learning_rate=LinearSchedule(1e-3, 1e-5, 1.0)),
    ),
}


class Killed(Exception):
    pass


def learn_until_killed(model: FlowRL, total: int, folder: Path, kill_at: int, save_freq: int = 200) -> None:
    def kill(local_variables: dict, _) -> bool:
        if model.num_timesteps >= kill_at:
            raise Killed
        return True

    with pytest.raises(Killed):
        model.learn(total, callback=[ResumableCheckpointCallback(folder, save_freq), ConvertCallback(kill)])


def resume_and_finish(env, total: int, folder: Path, callback=None) -> FlowRL:
    scramble_generators()
    model = FlowRL.load_checkpoint(folder, env, device="cpu")
    return model.learn(total - model.num_timesteps, reset_num_timesteps=False, callback=callback)


@pytest.mark.filterwarnings("error:The environment does not start")
@pytest.mark.parametrize("run", RUNS)
def test_a_stopped_run_goes_on_as_one_that_never_saved_anything(run, tmp_path):
    make_env, policy, kwargs = RUNS[run]
    whole = run_fingerprint(make_model(make_env(), policy, **kwargs).learn(420))
    learn_until_killed(make_model(make_env(), policy, **kwargs), 420, tmp_path, kill_at=300)
    resumed = resume_and_finish(make_env(), 420, tmp_path)
    assert resumed._n_updates > 30
    assert_same_run(run_fingerprint(resumed), whole)


def learn_until_stopped(model: FlowRL, total: int, folder: Path, stop_at: int) -> None:
    """As a callback such as SB3's StopTrainingOnRewardThreshold stops a run."""
    stop = ConvertCallback(lambda *_: model.num_timesteps < stop_at)
    callbacks = [ResumableCheckpointCallback(folder, 200), stop]
    model.learn(total - model.num_timesteps, callback=callbacks, reset_num_timesteps=False)
    assert model.num_timesteps < total


@pytest.mark.filterwarnings("error:The environment does not start")
@pytest.mark.parametrize("run", ["pendulum", "normalized", "action noise", "her"])
def test_a_run_that_a_callback_stopped_within_an_episode_goes_on_as_one_that_never_stopped(run, tmp_path):
    make_env, policy, kwargs = RUNS[run]
    whole = run_fingerprint(make_model(make_env(), policy, **kwargs).learn(420))
    learn_until_stopped(make_model(make_env(), policy, **kwargs), 420, tmp_path, stop_at=305)
    resumed = FlowRL.load_checkpoint(tmp_path, make_env(), device="cpu")
    assert 200 <= resumed.num_timesteps < 305
    learn_until_stopped(resumed, 420, tmp_path, stop_at=312)  # before the next checkpoint
    assert_same_run(run_fingerprint(resume_and_finish(make_env(), 420, tmp_path)), whole)


def test_nothing_is_lost_of_a_run_that_a_callback_stopped(tmp_path):
    first = make_model()
    learn_until_stopped(first, 420, tmp_path / "first", stop_at=150)
    resumed = FlowRL.load_checkpoint(tmp_path / "first", "Pendulum-v1", device="cpu")  # no other checkpoint to go on from
    assert resumed.num_timesteps == 150 and not (tmp_path / "first" / "stopped").exists()

    model = make_model()
    learn_until_stopped(model, 420, tmp_path / "run", stop_at=305)
    at_the_stop = run_fingerprint(model)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-000000-step-200"]
    resumed = FlowRL.load_checkpoint(tmp_path / "run" / "stopped", "Pendulum-v1", device="cpu")
    assert resumed.num_timesteps == 305
    assert_same_run(run_fingerprint(resumed), at_the_stop)
    resumed.learn(420 - 305, callback=ResumableCheckpointCallback(tmp_path / "run", 50), reset_num_timesteps=False)
    assert list_checkpoints(tmp_path / "run")[-1].name.endswith("step-420")  # reached its end, also within an episode


RESTARTED = {
    "noisy steps": (lambda: drift_envs(1, randomness="steps"), {}),
    "global generators": (lambda: drift_envs(1, randomness="global"), {}),
    "never between all episodes": (lambda: drift_envs(2, lengths=(30, 60)), dict(action_noise=ou_noise())),
    "episodes longer than between checkpoints": (lambda: drift_envs(2, lengths=(60, 90)), {}),
    "scaled rewards of episodes that are cut": (lambda: drift_envs(2, lengths=(30, 60)), dict(scale_rewards=True)),
    "other processes": (lambda: SubprocVecEnv([DriftEnv] * 2, start_method="fork"), {}),
    "unknown wrapper": (lambda: DimmingWrapper(drift_envs(1)), {}),
}


class DimmingWrapper(VecEnvWrapper):
    """Dims observations more and more until it is reset: a state that only a reset brings into a known one."""

    light = 1.0

    def reset(self):
        self.light = 1.0
        return self.venv.reset()

    def step_wait(self):
        self.light *= 0.999
        obs, *rest = self.venv.step_wait()
        return self.light * obs, *rest


@pytest.mark.filterwarnings("error:The environment does not start")
@pytest.mark.filterwarnings("ignore:The checkpoint does not hold the state of DimmingWrapper")
@pytest.mark.filterwarnings("ignore:The checkpoint at step 100 ends episodes under way")
@pytest.mark.parametrize("run", RESTARTED)
def test_where_episodes_have_to_be_restarted_both_runs_restart_them(run, tmp_path):
    make_env, kwargs = RESTARTED[run]
    envs = [make_env() for _ in range(3)]
    whole = make_model(envs[0], **kwargs).learn(240, callback=ResumableCheckpointCallback(tmp_path / "whole", 50))
    whole = run_fingerprint(whole)
    learn_until_killed(make_model(envs[1], **kwargs), 240, tmp_path, kill_at=170, save_freq=50)
    resumed = resume_and_finish(envs[2], 240, tmp_path, ResumableCheckpointCallback(tmp_path, 50))
    assert_same_run(run_fingerprint(resumed), whole)
    for env in envs:
        env.close()


@pytest.mark.parametrize("make_env", [lambda: "Pendulum-v1", lambda: drift_envs(1, randomness="nothing moves")])
def test_saving_in_the_middle_of_an_episode_ends_it_as_by_a_time_out(make_env, tmp_path):
    model = make_model(make_env()).learn(75)
    assert model.replay_buffer.dones[74] == 0
    model.save_checkpoint(tmp_path)
    assert model.replay_buffer.dones[74] == 1 and model.replay_buffer.timeouts[74] == 1

    states = run_state.random_states(model)
    ours = run_fingerprint(model.learn(60, reset_num_timesteps=False))
    resumed = FlowRL.load_checkpoint(tmp_path, make_env(), device="cpu")
    assert resumed.replay_buffer.dones[74] == 1
    run_state.restore_random_states(resumed, states)
    assert_same_run(run_fingerprint(resumed.learn(60, reset_num_timesteps=False)), ours)


# -------------------------------------------------------------------------------------------- episodes that have to be cut


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


# --------------------------------------------------------------------------------------------- what can't be saved or loaded


def spoil_parameter(model: FlowRL) -> None:
    model.actor.get_parameter("velocity_net.0.weight").data[1, 2] = np.nan


def spoil_moment(model: FlowRL) -> None:
    model.critic.optimizer.state[next(model.critic.parameters())]["exp_avg"].view(-1)[0] = np.inf


def spoil_spread_coef(model: FlowRL) -> None:
    assert model.log_spread_coef is not None
    model.log_spread_coef.data[0] = np.nan


NOT_FINITE = {
    "parameter": (spoil_parameter, r"1 of 48 values of policy\.actor\.velocity_net\.0\.weight are not finite"),
    "moment": (spoil_moment, r"1 of \d+ values of critic\.optimizer\.state\.0\.exp_avg are"),
    "coefficient of the spread": (spoil_spread_coef, "1 of 1 values of log_spread_coef are"),
}


@pytest.mark.parametrize("case", NOT_FINITE)
def test_networks_that_are_not_finite_get_no_checkpoint_and_training_goes_on(case, tmp_path):
    spoil, message = NOT_FINITE[case]
    model = make_model(drift_envs(1)).learn(40)
    good = model.save_checkpoint(tmp_path, keep=1)
    spoil(model)
    model.learning_starts = 10_000
    with pytest.raises(CheckpointError, match=f"at step 40 because the networks have diverged: {message}"):
        model.save_checkpoint(tmp_path, keep=1)
    with pytest.warns(UserWarning, match="have diverged: .*Training continues, and the next attempt is in 20 steps"):
        model.learn(40, callback=ResumableCheckpointCallback(tmp_path, 20, keep=1), reset_num_timesteps=False)
    assert model.num_timesteps == 80 and list(tmp_path.iterdir()) == [good]


def guidance_with_a_lock():
    lock = threading.Lock()

    def guidance(q_behavior, q_policy, w2_coef):
        with lock:
            return w2_coef * th.ones_like(q_policy)

    return guidance


def test_what_cannot_be_pickled_is_an_error_before_training(tmp_path):
    model = make_model(drift_envs(1), guidance=guidance_with_a_lock())
    with pytest.raises(CheckpointError, match=r"the model's guidance can't be pickled.*lock.*train without checkpoints"):
        model.learn(60, callback=ResumableCheckpointCallback(tmp_path, 20))
    with pytest.raises(CheckpointError, match="the model's guidance can't be pickled"):
        model.save_checkpoint(tmp_path)

    other = make_model(VecNormalize(drift_envs(1)))
    other.replay_buffer.lock = threading.Lock()
    with pytest.raises(CheckpointError, match="the replay buffer's lock can't be pickled"):
        other.learn(60, callback=ResumableCheckpointCallback(tmp_path, 20))
    other.replay_buffer.lock = None
    other.env.obs_rms.lock = threading.Lock()
    with pytest.raises(CheckpointError, match="VecNormalize's obs_rms can't be pickled"):
        other.learn(60, callback=ResumableCheckpointCallback(tmp_path, 20))
    assert model.num_timesteps == other.num_timesteps == 0 and list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error:The environment does not start")
def test_classes_and_functions_made_in_functions_are_saved(tmp_path):
    factor = 0.1

    class LocalBuffer(ReplayBuffer):
        pass

    kwargs = dict(replay_buffer_class=LocalBuffer, guidance=lambda q_behavior, q_policy, w2_coef: factor + 0 * q_policy)
    whole = run_fingerprint(make_model(drift_envs(1), **kwargs).learn(60))
    learn_until_killed(make_model(drift_envs(1), **kwargs), 60, tmp_path, kill_at=45, save_freq=20)
    resumed = resume_and_finish(drift_envs(1), 60, tmp_path)
    assert type(resumed.replay_buffer).__name__ == "LocalBuffer"
    assert_same_run(run_fingerprint(resumed), whole)


def test_a_class_of_the_users_script_stays_that_class(tmp_path, monkeypatch):
    def run_script() -> type[ReplayBuffer]:
        buffer_class = type("ScriptBuffer", (ReplayBuffer,), {"__module__": "__main__"})
        monkeypatch.setattr(sys.modules["__main__"], "ScriptBuffer", buffer_class, raising=False)
        return buffer_class

    make_model(drift_envs(1), replay_buffer_class=run_script()).save_checkpoint(tmp_path)
    buffer_class = run_script()
    assert type(FlowRL.load_checkpoint(tmp_path, drift_envs(1)).replay_buffer) is buffer_class


MODULE = """
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.torch_layers import FlattenExtractor

def weights(q_behavior, q_policy, w2_coef):
    return w2_coef * th.ones_like(q_policy)

class Buffer(ReplayBuffer):
    pass

class Extractor(FlattenExtractor):
    pass
"""


@pytest.fixture
def module_of_the_run(tmp_path, monkeypatch):
    (tmp_path / "module_of_the_run.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("module_of_the_run")
    sys.modules.pop("module_of_the_run", None)


GONE = {
    "guidance": (lambda module: dict(guidance=module.weights), "the model's guidance needs module_of_the_run.weights"),
    "extractor": (
        lambda module: dict(policy_kwargs=dict(net_arch=[8], features_extractor_class=module.Extractor)),
        "the model's policy_kwargs needs module_of_the_run.Extractor",
    ),
    "buffer": (
        lambda module: dict(replay_buffer_class=module.Buffer),
        "the model's replay_buffer_class needs module_of_the_run.Buffer",
    ),
}


@pytest.mark.parametrize("whole_module", [True, False])
@pytest.mark.parametrize("case", GONE)
def test_a_class_of_the_run_that_is_gone_is_named(case, whole_module, module_of_the_run, tmp_path):
    make_kwargs, message = GONE[case]
    make_model(drift_envs(1), **make_kwargs(module_of_the_run)).save_checkpoint(tmp_path / "run")
    (tmp_path / "module_of_the_run.py").unlink()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    if whole_module:
        del sys.modules["module_of_the_run"]
    else:
        for name in ("weights", "Buffer", "Extractor"):
            delattr(module_of_the_run, name)
    importlib.invalidate_caches()
    with pytest.raises(CheckpointError, match=f"checkpoint-000000-step-0 can't be loaded: {message}.*custom_objects={{"):
        FlowRL.load_checkpoint(tmp_path / "run", drift_envs(1))
    if case == "buffer":
        with pytest.raises(CheckpointError, match=r"replay_buffer.pkl needs module_of_the_run.Buffer"):
            FlowRL.load_checkpoint(tmp_path / "run", drift_envs(1), custom_objects=dict(replay_buffer_class=None))
    else:
        replacement = dict(guidance="paper") if case == "guidance" else dict(policy_kwargs=dict(net_arch=[8]))
        assert FlowRL.load_checkpoint(tmp_path / "run", drift_envs(1), custom_objects=replacement).num_timesteps == 0


def test_a_file_of_a_checkpoint_that_is_no_pickle_is_an_error_that_names_it(tmp_path):
    path = make_model(drift_envs(1)).save_checkpoint(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "run_state.pkl").write_bytes(b"nonsense")
    manifest["files"]["run_state.pkl"] = files._describe(path / "run_state.pkl")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"-000000-step-0 can't be loaded: run_state\.pkl fails with Unpickling"):
        FlowRL.load_checkpoint(tmp_path, drift_envs(1))


def test_options_of_vec_normalize_are_those_given_and_its_statistics_the_runs(tmp_path):
    model = make_model(VecNormalize(drift_envs(2), gamma=0.9)).learn(80)
    model.save_checkpoint(tmp_path)
    given = VecNormalize(drift_envs(2), training=False, norm_reward=False, clip_obs=5.0, gamma=0.9)
    options = "training=False., which was True in the run; .*norm_reward=False.*clip_obs=5.0., which was 10.0 in the run"
    with pytest.warns(UserWarning, match=options) as warned:
        resumed = FlowRL.load_checkpoint(tmp_path, given, device="cpu")
    assert len(warned) == 1 and "gamma" not in str(warned[0].message)
    assert (given.training, given.norm_reward, given.clip_obs) == (False, False, 5.0)
    assert np.array_equal(given.obs_rms.mean, model.env.obs_rms.mean) and given.ret_rms.var == model.env.ret_rms.var
    resumed.learn(40, reset_num_timesteps=False)
    assert np.array_equal(given.obs_rms.mean, model.env.obs_rms.mean)  # it was not to go on changing

    raw = VecNormalize(drift_envs(2), norm_obs=False, gamma=0.9)
    with pytest.warns(UserWarning, match="norm_obs=False., which was True in the run"):
        resumed = FlowRL.load_checkpoint(tmp_path, raw, device="cpu")
    assert np.array_equal(resumed._last_obs, resumed._last_original_obs)


def test_statistics_of_keys_that_the_run_did_not_normalize_begin_anew(tmp_path):
    def make_env(*keys: str) -> VecNormalize:
        return VecNormalize(DummyVecEnv([ReachEnv]), norm_obs_keys=list(keys))

    model = make_model(make_env("observation"), "MultiInputPolicy").learn(40)
    model.save_checkpoint(tmp_path)
    given = make_env("observation", "desired_goal")
    with pytest.warns(UserWarning, match="norm_obs_keys"):
        FlowRL.load_checkpoint(tmp_path, given, device="cpu").learn(20, reset_num_timesteps=False)
    assert given.obs_rms.keys() == {"observation", "desired_goal"}
    assert given.obs_rms["observation"].count > 40 > given.obs_rms["desired_goal"].count


def test_checkpoints_of_before_runs_had_names_go_on(tmp_path):
    path = make_model(drift_envs(1)).learn(40).save_checkpoint(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    old = {key: manifest[key] for key in ("format_version", "sb3_flowrl", "num_timesteps", "files")}
    (path / "manifest.json").write_text(json.dumps(old))
    resumed = FlowRL.load_checkpoint(tmp_path, drift_envs(1), seed=3, learning_starts=30)
    resumed.learn(40, callback=ResumableCheckpointCallback(tmp_path, 20, keep=1), reset_num_timesteps=False)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000002-step-80"]
    with pytest.raises(CheckpointError, match="holds the checkpoints of another run"):
        make_model(drift_envs(1)).learn(40, callback=ResumableCheckpointCallback(tmp_path, 20))


def test_a_run_that_has_not_begun(tmp_path):
    make_model().save_checkpoint(tmp_path)
    whole = run_fingerprint(make_model().learn(50))
    assert_same_run(run_fingerprint(resume_and_finish("Pendulum-v1", 50, tmp_path)), whole)


def test_saving_starts_no_cuda_that_nothing_has_used(monkeypatch):
    model = make_model()
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(th.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(th.cuda, "get_rng_state_all", lambda: pytest.fail("CUDA was started"))
    assert run_state.random_states(model)["cuda"] == []


def test_what_cannot_be_restored_is_warned_about(tmp_path):
    make_model(drift_envs(1, randomness="own")).learn(40).save_checkpoint(tmp_path)
    with pytest.warns(UserWarning, match="does not start its episodes as in the saved run"):
        resumed = FlowRL.load_checkpoint(tmp_path, drift_envs(1, randomness="own"), device="cpu")
    assert resumed.learn(20, reset_num_timesteps=False).num_timesteps == 60

    env = DummyVecEnv([lambda: gym.wrappers.NormalizeObservation(DriftEnv())])
    with pytest.warns(UserWarning, match="does not hold the state of DimmingWrapper, NormalizeObservation"):
        make_model(DimmingWrapper(env)).save_checkpoint(tmp_path)


def test_the_environment_has_to_fit(tmp_path):
    make_model(VecNormalize(drift_envs(2))).learn(40).save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"has the wrappers \['VecNormalize'\].*but the one given has none"):
        FlowRL.load_checkpoint(tmp_path, drift_envs(2))
    with pytest.raises(ValueError, match="n_envs=2, but the given environment has 3"):
        FlowRL.load_checkpoint(tmp_path, VecNormalize(drift_envs(3)))


def test_the_saved_replay_buffer_is_as_large_as_what_is_in_it(tmp_path):
    model = make_model(buffer_size=1_000_000).learn(40)
    path = model.save_checkpoint(tmp_path)
    assert (path / "replay_buffer.pkl").stat().st_size < 20_000
    buffer = FlowRL.load_checkpoint(tmp_path, "Pendulum-v1").replay_buffer
    assert buffer.observations.shape == model.replay_buffer.observations.shape
    assert np.array_equal(buffer.rewards[:41], model.replay_buffer.rewards[:41])


# -------------------------------------------------------------------------------------------------------------- on disk


def write(folder: Path, step: int, keep: int = 2, content: bytes = b"content") -> Path:
    return write_checkpoint(folder, step, {"one": lambda file: file.write(content), "two": lambda file: file.write(b"")}, keep)


def test_the_newest_are_kept_also_when_another_run_begins_in_the_same_folder(tmp_path):
    paths = [write(tmp_path, step) for step in (5_000, 10_000, 100, 100)]
    assert list_checkpoints(tmp_path) == paths[-2:] == sorted(tmp_path.iterdir())
    assert find_checkpoint(tmp_path) == paths[-1]


def _flip_bit(path: Path) -> None:
    data = bytearray((path / "one").read_bytes())
    data[3] ^= 1
    (path / "one").write_bytes(data)


def _set_version(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 2}))


DAMAGES = {
    "flipped bit": (_flip_bit, "checksum"),
    "truncated": (lambda path: os.truncate(path / "one", 2), "checksum"),
    "missing file": (lambda path: (path / "two").unlink(), "damaged: FileNotFoundError"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "damaged: FileNotFoundError"),
    "manifest of something else": (lambda path: (path / "manifest.json").write_text("[1]"), "damaged: TypeError"),
    "nested manifest": (lambda path: (path / "manifest.json").write_text("[" * 10**6), "damaged: RecursionError"),
    "half a manifest": (lambda path: os.truncate(path / "manifest.json", 30), "damaged: JSONDecodeError"),
    "other version": (_set_version, "format version 2.* reads version 1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(damage, tmp_path):
    spoil, message = DAMAGES[damage]
    old, new = write(tmp_path, 1), write(tmp_path, 2)
    spoil(new)
    with pytest.warns(UserWarning, match=f"{message}.* The older {old.name} is used instead"):
        assert find_checkpoint(tmp_path) == old
    spoil(old)
    with pytest.raises(CheckpointError, match=f"There is no complete checkpoint in {tmp_path}.*{message}"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_does_not_count_as_one_that_is_kept(damage, tmp_path):
    older, old, new = (write(tmp_path, step) for step in (1, 2, 3))
    older = write(tmp_path, 1)
    spoil, _ = DAMAGES[damage]
    spoil(older)
    newest = write(tmp_path, 4)
    assert list_checkpoints(tmp_path) == [new, older, newest]
    assert not old.exists()
    assert list_checkpoints(tmp_path)[-1] == newest and write(tmp_path, 5).exists()
    assert not older.exists() and not new.exists()


def test_damage_at_the_very_moment_of_writing_is_noticed(tmp_path):
    old, new = write(tmp_path, 1), write(tmp_path, 2)
    written_at = (new / "one").stat().st_mtime_ns
    _flip_bit(new)
    os.utime(new / "one", ns=(written_at, written_at))
    assert [old, new, write(tmp_path, 3)] == list_checkpoints(tmp_path)


def test_a_large_file_is_not_read_again_at_each_checkpoint(tmp_path, monkeypatch):
    first = write(tmp_path, 1)
    for path in first.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    write(tmp_path, 2)
    monkeypatch.setattr(files, "open", lambda path, mode: pytest.fail(f"{path} is read"), raising=False)
    assert files._find_damage(first, trust=True) is None
    os.utime(first / "one", (1_000_000_001, 1_000_000_001))
    with pytest.raises(pytest.fail.Exception, match="one is read"):
        files._find_damage(first, trust=True)


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_passed_over_for_the_newer_one(tmp_path, monkeypatch):
    model = make_model(drift_envs(1)).learn(40)
    model.save_checkpoint(tmp_path, keep=1)
    load, describe = FlowRL.load, files._describe
    todo = ["while its files are checked", "while they are loaded"]

    def replace(moment: str) -> None:
        if moment in todo:
            todo.remove(moment)
            model.learn(20, reset_num_timesteps=False).save_checkpoint(tmp_path, keep=1)

    def describe_and_replace(path, *args):
        if path.name == "run_state.pkl" and path.parent.name.startswith("checkpoint-000000"):
            replace("while its files are checked")
        return describe(path, *args)

    def replace_and_load(path, *args, **kwargs):
        replace("while they are loaded")
        return load(path, *args, **kwargs)

    monkeypatch.setattr(files, "_describe", describe_and_replace)
    monkeypatch.setattr(FlowRL, "load", replace_and_load)
    assert FlowRL.load_checkpoint(tmp_path, drift_envs(1)).num_timesteps == 80
    assert todo == []

    def always_replace(*args, **kwargs):
        todo.append("while they are loaded")
        return replace_and_load(*args, **kwargs)

    monkeypatch.setattr(FlowRL, "load", always_replace)
    monkeypatch.setattr(model, "learn", lambda *_, **__: model)
    with pytest.raises(CheckpointError, match=r"replaces the checkpoints .* faster than they can be read"):
        FlowRL.load_checkpoint(tmp_path, drift_envs(1))


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no complete checkpoint in .*nowhere"):
        FlowRL.load_checkpoint(tmp_path / "nowhere", "Pendulum-v1")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, or where that takes rights that we have not, a limit on files of 4 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode == 0:
        yield folder, 20_000, "No space left on device"
        subprocess.run(["umount", folder], check=True)
    else:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, limits[1]))
        yield folder, 2_000, "File too large"
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_an_error_and_the_old_checkpoint_stays(small_disk):
    folder, fits, message = small_disk
    old = write(folder, 1, content=b"x" * fits)
    with pytest.raises(CheckpointError, match=f"step 2 could not be written to .*: {message}"):
        write(folder, 2, content=b"x" * 5 * fits)
    assert find_checkpoint(folder) == old
    assert list(folder.iterdir()) == [old]
    assert write(folder, 3, content=b"x" * fits).exists()


def test_training_goes_on_when_the_disk_is_full(small_disk):
    folder = small_disk[0]
    model = make_model(drift_envs(1), policy_kwargs=dict(net_arch=[64, 64]))
    with pytest.warns(UserWarning, match="Training continues, and the next attempt is in 20 steps"):
        model.learn(60, callback=ResumableCheckpointCallback(folder, 20))
    assert model.num_timesteps == 60 and list(folder.iterdir()) == []


def test_what_cannot_be_pickled_ends_no_training_and_leaves_nothing_behind(tmp_path):
    model = make_model(drift_envs(1))

    def spoil(*_) -> bool:
        model.replay_buffer.unpicklable = threading.Lock()
        return True

    with pytest.warns(UserWarning, match=r"can't be pickled or copied\. Training continues"):
        model.learn(60, callback=[ResumableCheckpointCallback(tmp_path / "run", 20), ConvertCallback(spoil)])
    assert model.num_timesteps == 60 and list((tmp_path / "run").iterdir()) == []


def test_an_interrupt_while_saving_leaves_nothing_behind(tmp_path):
    old = write(tmp_path, 1)

    def interrupted(file) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 2, {"file": interrupted}, keep=2)
    assert list(tmp_path.iterdir()) == [old]


def test_a_probe_that_a_killed_process_left_hinders_nobody(tmp_path):
    (tmp_path / ".unfinished-probe").mkdir()
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    model = make_model()
    with pytest.raises(CheckpointError, match=r"No checkpoint can be written to .*file.*: Not a directory|File exists"):
        model.learn(60, callback=ResumableCheckpointCallback(tmp_path / "file", 20))
    with pytest.raises(CheckpointError, match="The checkpoint of step 0 could not be written"):
        model.save_checkpoint(tmp_path / "file" / "below")
    assert model.num_timesteps == 0


@pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "EIO"])
def test_folders_that_the_file_system_cannot_flush_get_checkpoints_all_the_same(name, tmp_path, monkeypatch):
    def flush(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr(os, "fsync", flush)
    if name == "EIO":  # which means that the disk is broken
        with pytest.raises(CheckpointError, match="Input/output error"):
            write(tmp_path, 1)
    else:
        assert write(tmp_path, 1) == find_checkpoint(tmp_path)


def test_a_relative_folder_stays_where_it_is_when_the_process_changes_its_own(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    callback = ResumableCheckpointCallback("run", 20)

    def change(*_) -> bool:
        os.chdir(tmp_path / "elsewhere")
        return True

    make_model(drift_envs(1)).learn(40, callback=[callback, ConvertCallback(change)])
    assert len(list_checkpoints(tmp_path / "run")) == 2 and list((tmp_path / "elsewhere").iterdir()) == []


def test_the_home_folder_is_what_a_tilde_means(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    make_model(drift_envs(1)).learn(20, callback=ResumableCheckpointCallback("~/run", 20))
    assert list_checkpoints("~/run") == [find_checkpoint("~/run")] == list((tmp_path / "run").iterdir())
    FlowRL.load_checkpoint("~/run", drift_envs(1)).save_checkpoint("~/other")
    check_writable("~/third")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "other", "third"}
    with pytest.raises(CheckpointError, match=r"The folder ~nobody-of-that-name/run can't be found"):
        ResumableCheckpointCallback("~nobody-of-that-name/run", 20)


def test_a_read_only_folder(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    old = write(folder, 1)
    if os.geteuid() == 0:  # who may write to any folder, but not to a file system that is read-only
        if subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], capture_output=True).returncode != 0:
            pytest.skip("no right to mount")
    else:
        folder.chmod(0o555)
    try:
        with pytest.raises(CheckpointError, match=r"Read-only file system|Permission denied"):
            write(folder, 2)
        assert find_checkpoint(folder) == old
    finally:
        subprocess.run(["umount", folder], check=True) if os.geteuid() == 0 else folder.chmod(0o755)


def test_what_is_no_run_or_keeps_nothing_is_refused_before_any_work(tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match="keep=0 must be an integer of at least 1"):
        model.save_checkpoint(tmp_path / "run", keep=0)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="this model has no environment to run in"):
        FlowRL.load(tmp_path / "model").save_checkpoint(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argument", [dict(save_freq=0), dict(save_freq=10, keep=0)])
def test_callback_arguments(argument, tmp_path):
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        ResumableCheckpointCallback(tmp_path, **argument)


@pytest.mark.parametrize(
    ("kills", "env"),
    [(8, "pendulum"), *(pytest.param(60, env, marks=pytest.mark.slow) for env in ("pendulum", "pictures"))],
)
def test_kills_at_random_instants(kills, env, tmp_path):
    script = Path(__file__).parents[1] / "kills.py"
    command = [sys.executable, str(script), "--kills", str(kills), "--env", env, "--folder", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["kills"] == kills
    assert report["lost_checkpoints"] == report["damaged_checkpoints"] == 0
    assert report["same_parameters_as_without_kills"]
    assert kills < 60 or report["kills_while_writing"] > 5
