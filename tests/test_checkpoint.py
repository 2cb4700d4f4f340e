"""A run that was stopped goes on as if it had not been, and a checkpoint is whole or not there."""

import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from sb3_flowrl import FlowRL, NStepRecencyReplayBuffer, ResumableCheckpointCallback, run_state
from sb3_flowrl.checkpoint import CheckpointError, check_writable, find_checkpoint, list_checkpoints, write_checkpoint


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


RESTARTED = {
    "noisy steps": (lambda: drift_envs(1, randomness="steps"), {}),
    "global generators": (lambda: drift_envs(1, randomness="global"), {}),
    "never between all episodes": (lambda: drift_envs(2, lengths=(30, 60)), dict(action_noise=ou_noise())),
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
    with pytest.warns(UserWarning, match="does not start its episodes as it did"):
        resumed = FlowRL.load_checkpoint(tmp_path, drift_envs(1, randomness="own"), device="cpu")
    assert resumed.learn(20, reset_num_timesteps=False).num_timesteps == 60

    env = DummyVecEnv([lambda: gym.wrappers.NormalizeObservation(DriftEnv())])
    with pytest.warns(UserWarning, match="does not hold the state of DimmingWrapper, NormalizeObservation"):
        make_model(DimmingWrapper(env)).save_checkpoint(tmp_path)


def test_the_environment_has_to_fit(tmp_path):
    make_model(VecNormalize(drift_envs(2))).learn(40).save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"has the wrappers \['VecNormalize'\].*but the one given has none"):
        FlowRL.load_checkpoint(tmp_path, drift_envs(2))
    with pytest.raises(ValueError, match="n_envs=2, but the one given has 3"):
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
    "half a manifest": (lambda path: os.truncate(path / "manifest.json", 30), "damaged: JSONDecodeError"),
    "other version": (_set_version, "format version 2.* reads version 1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(damage, tmp_path):
    spoil, message = DAMAGES[damage]
    old, new = write(tmp_path, 1), write(tmp_path, 2)
    spoil(new)
    with pytest.warns(UserWarning, match=f"{message}.* The one before it, {old.name}, is used instead"):
        assert find_checkpoint(tmp_path) == old
    spoil(old)
    with pytest.raises(CheckpointError, match=f"There is no complete checkpoint in {tmp_path}.*{message}"):
        find_checkpoint(tmp_path)


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
    with pytest.warns(UserWarning, match="Training goes on, and tries again in 20 steps"):
        model.learn(60, callback=ResumableCheckpointCallback(folder, 20))
    assert model.num_timesteps == 60 and list(folder.iterdir()) == []


def test_what_cannot_be_pickled_ends_no_training_and_leaves_nothing_behind(tmp_path):
    model = make_model(drift_envs(1))
    model.replay_buffer.unpicklable = lambda: None
    with pytest.warns(UserWarning, match="can't be pickled, or copied. Training goes on"):
        model.learn(60, callback=ResumableCheckpointCallback(tmp_path / "run", 20))
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


@pytest.mark.parametrize("kills", [8, pytest.param(120, marks=pytest.mark.slow)])
def test_kills_at_random_instants(kills, tmp_path):
    script = Path(__file__).parent / "kills.py"
    command = [sys.executable, str(script), "--kills", str(kills), "--folder", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["kills"] == kills
    assert report["lost_checkpoints"] == report["damaged_checkpoints"] == 0
    assert report["same_parameters_as_without_kills"]
    assert kills < 100 or report["kills_while_writing"] > 10
