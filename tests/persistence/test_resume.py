"""A run that was stopped goes on as if it had not been."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_flowrl import FlowRL, NStepRecencyReplayBuffer, ResumableCheckpointCallback
from sb3_flowrl.checkpoint import random_states
from sb3_flowrl.checkpoint.files import CheckpointError, list_checkpoints
from tests.marks import slow_except
from tests.persistence.runs import (
    DimmingWrapper,
    DriftEnv,
    ReachEnv,
    assert_same_run,
    drift_envs,
    learn_until_killed,
    make_model,
    ou_noise,
    resume_and_finish,
    run_fingerprint,
)

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
    "schedule": (
        lambda: drift_envs(1),
        "MlpPolicy",
        dict(precision="bfloat16", learning_rate=LinearSchedule(1e-3, 1e-5, 1.0)),
    ),
}


@pytest.mark.filterwarnings("error:The environment does not start")
@pytest.mark.parametrize("run", slow_except(["pendulum", "frames", "n steps", "her"], RUNS))
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
@pytest.mark.parametrize("run", slow_except(["normalized"], ["pendulum", "normalized", "action noise", "her"]))
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
    "other processes": (lambda: SubprocVecEnv([DriftEnv] * 2, start_method="fork"), {}),
    "unknown wrapper": (lambda: DimmingWrapper(drift_envs(1)), {}),
}


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
    assert random_states.random_states(model)["cuda"] == []


def test_a_run_goes_on_with_fewer_gpus(monkeypatch):
    model, restored = make_model(), {}
    states = {**random_states.random_states(model), "cuda": ["first", "second"]}
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(th.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(th.cuda, "set_rng_state", lambda state, device: restored.update({device: state}))
    random_states.restore_random_states(model, states)
    assert restored == {0: "first"}


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
