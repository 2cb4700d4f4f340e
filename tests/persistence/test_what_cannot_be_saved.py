"""What can't be saved or loaded is named, and takes nothing else with it."""

import importlib
import json
import shutil
import sys
import threading

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_flowrl import FlowRL, ResumableCheckpointCallback
from sb3_flowrl.checkpoint import files
from sb3_flowrl.checkpoint.files import CheckpointError
from tests.persistence.runs import (
    assert_same_run,
    drift_envs,
    learn_until_killed,
    make_model,
    resume_and_finish,
    run_fingerprint,
)


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


def test_what_cannot_be_pickled_ends_no_training_and_leaves_nothing_behind(tmp_path):
    model = make_model(drift_envs(1))

    def spoil(*_) -> bool:
        model.replay_buffer.unpicklable = threading.Lock()
        return True

    with pytest.warns(UserWarning, match=r"can't be pickled or copied\. Training continues"):
        model.learn(60, callback=[ResumableCheckpointCallback(tmp_path / "run", 20), ConvertCallback(spoil)])
    assert model.num_timesteps == 60 and list((tmp_path / "run").iterdir()) == []
