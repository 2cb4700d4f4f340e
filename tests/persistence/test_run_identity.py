"""Runs don't get mixed up: a folder is one run's, which goes on with the arguments that it was begun with."""

import copy
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_flowrl import FlowRL, RecencyReplayBuffer, ResumableCheckpointCallback
from sb3_flowrl.checkpoint.files import CheckpointError, list_checkpoints
from tests.persistence.runs import DriftEnv, drift_envs, make_model

ARGUMENTS = dict(policy="MlpPolicy", seed=1, learning_starts=30, batch_size=8, policy_kwargs=dict(net_arch=[8]), device="cpu")


def run(folder, total: int = 40, **changes) -> FlowRL:
    """The README's recipe."""
    env, arguments = drift_envs(1), {**ARGUMENTS, **changes}
    if list_checkpoints(folder):
        model = FlowRL.load_checkpoint(folder, env, **arguments)
    else:
        model = FlowRL(env=env, **arguments)
    callback = ResumableCheckpointCallback(folder, 20)
    return model.learn(total - model.num_timesteps, callback=callback, reset_num_timesteps=False)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_recipe_goes_on_and_finishes_and_can_be_run_once_more(tmp_path):
    assert run(tmp_path, 40).num_timesteps == 40
    assert run(tmp_path, 80).num_timesteps == 80
    finished = names(tmp_path)
    assert run(tmp_path, 80).num_timesteps == 80
    assert names(tmp_path) == finished and finished[-1].endswith("step-80")


def test_the_recipe_with_other_arguments_does_not_go_on_with_the_run(tmp_path):
    run(tmp_path)
    before = names(tmp_path)
    message = "seed=1 there and seed=2 here; batch_size=8 there and batch_size=16 here. Leave them out"
    for error in (CheckpointError, ValueError):
        with pytest.raises(error, match=message):
            run(tmp_path, seed=2, batch_size=16)
    assert names(tmp_path) == before
    # What is not given is not compared, and what the run has stays
    assert FlowRL.load_checkpoint(tmp_path, drift_envs(1), seed=1).batch_size == 8


def test_a_fresh_run_is_refused_before_it_begins_where_another_has_its_checkpoints(tmp_path):
    run(tmp_path)
    before = names(tmp_path)
    fresh = make_model(drift_envs(1), seed=2, gamma=0.9)
    message = (
        "holds the checkpoints of another run with other arguments: .*gamma=0.99 there and gamma=0.9 in this run; "
        "seed=1 there and seed=2 in this run"
    )
    for error in (CheckpointError, ValueError):
        with pytest.raises(error, match=f"(?s){message}.*load_checkpoint.*choose another folder"):
            fresh.learn(60, callback=ResumableCheckpointCallback(tmp_path, 20))
    assert fresh.num_timesteps == 0 and names(tmp_path) == before

    same = FlowRL(env=drift_envs(1), **ARGUMENTS)
    with pytest.raises(CheckpointError, match="with the same arguments"):
        same.learn(60, callback=ResumableCheckpointCallback(tmp_path, 20))
    other_task = FlowRL(env="Pendulum-v1", **ARGUMENTS)
    other_task.save_checkpoint(tmp_path / "pendulum")
    with pytest.raises(CheckpointError, match="env='Pendulum-v1' there and env='MountainCarContinuous-v0' in this run"):
        FlowRL(env="MountainCarContinuous-v0", **ARGUMENTS).learn(9, ResumableCheckpointCallback(tmp_path / "pendulum", 20))


def test_a_run_goes_on_in_its_folder_within_one_process(tmp_path):
    model = FlowRL(env=drift_envs(1), **ARGUMENTS)
    for total in (40, 80):
        model.learn(40, callback=ResumableCheckpointCallback(tmp_path, 20), reset_num_timesteps=False)
        assert names(tmp_path)[-1].endswith(f"step-{total}")


def test_saving_to_the_folder_of_another_run_deletes_none_of_its_checkpoints(tmp_path):
    run(tmp_path)
    before = names(tmp_path)
    with pytest.warns(UserWarning, match="holds the checkpoints of another run"):
        for model in [make_model(drift_envs(1))] * 3:
            model.save_checkpoint(tmp_path, keep=1)
    assert names(tmp_path)[:-1] == before


def test_a_copy_of_a_model_is_another_run(tmp_path):
    model = make_model(drift_envs(1)).learn(20)
    first = model.save_checkpoint(tmp_path)
    with pytest.warns(UserWarning, match="holds the checkpoints of another run"):
        copy.deepcopy(model).save_checkpoint(tmp_path, keep=1)
    assert first.exists()
    with pytest.raises(CheckpointError, match=f"It is a checkpoint itself: pass its parent folder, {tmp_path}"):
        FlowRL.load_checkpoint(first, drift_envs(1))


def test_a_model_that_was_loaded_from_a_file_is_not_the_run_that_saved_it(tmp_path):
    run(tmp_path / "run").save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="holds the checkpoints of another run"):
        FlowRL.load(tmp_path / "model", drift_envs(1)).learn(20, ResumableCheckpointCallback(tmp_path / "run", 20))


def schedule(progress: float) -> float:
    return 1e-3 * progress


SAME = {
    "train_freq": (dict(train_freq=1), dict(train_freq=(1, "step"))),
    "n_steps": (dict(n_steps=3), dict(n_steps=3, replay_buffer_kwargs=None, replay_buffer_class=None)),
    "numbers": (dict(gamma=0.9, buffer_size=100), dict(gamma=np.float64(0.9), buffer_size=np.int64(100))),
    "action noise": [dict(action_noise=NormalActionNoise(np.zeros(2), np.ones(2)))] * 2,
    "schedules": (dict(learning_rate=LinearSchedule(1e-3, 1e-4, 1.0)), dict(learning_rate=LinearSchedule(1e-3, 1e-4, 1.0))),
    "functions": [dict(learning_rate=schedule, guidance=lambda q_behavior, q_policy, w2_coef: w2_coef + 0 * q_policy)] * 2,
    "classes": [dict(replay_buffer_class=RecencyReplayBuffer, policy_kwargs=dict(net_arch=[8], activation_fn=th.nn.Tanh))] * 2,
    "what changes nothing": (dict(verbose=0), dict(verbose=1, tensorboard_log="elsewhere")),
}


@pytest.mark.parametrize("case", SAME)
def test_arguments_that_mean_the_same_are_no_difference(case, tmp_path):
    ours, theirs = SAME[case]
    make_model(drift_envs(2), **ours).learn(20, callback=ResumableCheckpointCallback(tmp_path, 20))
    resumed = FlowRL.load_checkpoint(tmp_path, drift_envs(2), **theirs)
    assert resumed.num_timesteps == 20
    for name in {"verbose", "tensorboard_log"} & theirs.keys():
        assert getattr(resumed, name) == theirs[name]


DIFFERENT = {
    "policy": (dict(policy="MultiInputPolicy"), "policy='FlowActorCriticPolicy' there and policy='MultiInputPolicy' here"),
    "policy_kwargs": (dict(policy_kwargs=dict(net_arch=[9])), r"policy_kwargs={'net_arch': \[8\]} there"),
    "train_freq": (dict(train_freq=(1, "episode")), r"train_freq=\[1, 'step'\] there and train_freq=\[1, 'episode'\] here"),
    "learning_rate": (dict(learning_rate=schedule), "learning_rate=0.001 there and learning_rate='schedule' here"),
    "buffer": (dict(replay_buffer_class=RecencyReplayBuffer), "replay_buffer_class=None there .*='RecencyReplayBuffer' here"),
    "window": (dict(stats_window_size=7), "stats_window_size=100 there and stats_window_size=7 here"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_model(drift_envs(1)).save_checkpoint(folder)
    return folder


@pytest.mark.parametrize("case", DIFFERENT)
def test_an_argument_that_differs_is_named_with_both_values(case, saved):
    given, message = DIFFERENT[case]
    with pytest.raises(ValueError, match=message):
        FlowRL.load_checkpoint(saved, drift_envs(1), **given)


def test_an_argument_that_does_not_exist_is_named_with_the_nearest_that_does(saved):
    with pytest.raises(TypeError, match=r"FlowRL has no argument sede\. Did you mean seed\?"):
        FlowRL.load_checkpoint(saved, drift_envs(1), sede=3)
    with pytest.raises(
        TypeError, match=r"FlowRL has no argument _init_setup_model\. Its arguments are policy, learning_rate,"
    ):
        FlowRL.load_checkpoint(saved, drift_envs(1), _init_setup_model=False)


def test_a_run_does_not_go_on_in_another_environment(tmp_path):
    FlowRL(env="Pendulum-v1", **ARGUMENTS).save_checkpoint(tmp_path)
    gym.register("OtherPendulum-v0", "gymnasium.envs.classic_control.pendulum:PendulumEnv", max_episode_steps=50)
    try:
        with pytest.raises(ValueError, match="env='Pendulum-v1' there and env='OtherPendulum-v0' here"):
            FlowRL.load_checkpoint(tmp_path, "OtherPendulum-v0")
    finally:
        del gym.registry["OtherPendulum-v0"]
    FlowRL.load_checkpoint(tmp_path, gym.make("Pendulum-v1", max_episode_steps=7))


def test_without_an_environment_a_run_cannot_go_on(saved):
    for error in (CheckpointError, ValueError):
        with pytest.raises(error, match=r"env=None, but the run in .* needs an environment to continue"):
            FlowRL.load_checkpoint(saved, None)
    with pytest.raises(ValueError, match="env=3 must be an environment"):
        FlowRL.load_checkpoint(saved, 3)


OTHER_PROCESS = """
import sys
from stable_baselines3.common.callbacks import ConvertCallback
from sb3_flowrl import ResumableCheckpointCallback
from tests.persistence.runs import drift_envs, make_model

def wait(*_):
    print("training", flush=True)
    sys.stdin.read()
    return False

make_model(drift_envs(1)).learn(60, callback=[ResumableCheckpointCallback(sys.argv[1], 20), ConvertCallback(wait)])
"""


@pytest.fixture
def other_process(tmp_path):
    """A process that is in the midst of training, with its checkpoints in `tmp_path`, until its input ends."""
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "training"
    yield process
    process.kill()
    process.communicate()


def test_of_two_processes_in_one_folder_the_second_is_refused_until_the_first_has_ended(other_process, tmp_path):
    model = make_model(drift_envs(1))
    message = f"another process has a run there .process {other_process.pid} on .*Give each run its own folder"
    with pytest.raises(CheckpointError, match=message):
        model.learn(60, callback=ResumableCheckpointCallback(tmp_path, 20))
    with pytest.raises(CheckpointError, match=message):
        model.save_checkpoint(tmp_path)
    assert model.num_timesteps == 0 and list_checkpoints(tmp_path) == []

    other_process.kill()
    other_process.wait()
    model.learn(40, callback=ResumableCheckpointCallback(tmp_path, 20))
    assert names(tmp_path) == [path.name for path in list_checkpoints(tmp_path)] != []


def test_other_versions_are_warned_about(tmp_path, monkeypatch, recwarn):
    with monkeypatch.context() as patch:
        patch.setattr(th, "__version__", "1.2.3")
        patch.setattr("sb3_flowrl.checkpoint.run_identity.__version__", "0.0.1")
        make_model(drift_envs(1)).save_checkpoint(tmp_path)
    message = r"checkpoint-000000-step-0 was written with sb3_flowrl 0.0.1 \(here .*\), torch 1.2.3 \(here .*not bit for bit"
    with pytest.warns(UserWarning, match=message):
        model = FlowRL.load_checkpoint(tmp_path, drift_envs(1))
    recwarn.clear()
    model.save_checkpoint(tmp_path)
    FlowRL.load_checkpoint(tmp_path, drift_envs(1))
    assert not recwarn.list


def test_checkpoints_of_models_of_other_algorithms_name_their_arguments_too():
    from sb3_flowrl.checkpoint.run_identity import describe_arguments

    model = SAC("MlpPolicy", DummyVecEnv([DriftEnv]), ent_coef="auto_0.1", seed=4, device="cpu")
    arguments = describe_arguments(model)
    assert arguments["ent_coef"] == "auto_0.1" and arguments["seed"] == 4 and arguments["policy"] == "SACPolicy"
    assert "verbose" not in arguments and "device" not in arguments
