"""The ONNX file gives predict's actions."""

import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_flowrl import FlowRL, MultiInputPolicy
from sb3_flowrl.export import __main__ as command
from sb3_flowrl.export.onnx import export_onnx, largest_difference, sample_observations
from tests.marks import slow_except
from tests.persistence.test_safe_policy import MIXED, POLICIES, make_policy, sample

for package in ("onnx", "onnxscript"):
    pytest.importorskip(package)
onnxruntime = pytest.importorskip("onnxruntime")

CASES: dict[str, dict[str, Any]] = {
    "defaults": dict(),
    "an activation with arguments": dict(net_arch=(8,), activation_fn=partial(nn.LeakyReLU, 0.2)),
    "images": {**POLICIES["images"], "noise_clip": 0.3},
    "everything changed": dict(
        policy_class=MultiInputPolicy,
        observation_space=MIXED,
        net_arch=[8, 4],
        layer_norm=False,
        flow_steps=3,
        ode_solver="rk4",
        noise_clip=None,
    ),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "policy.onnx"


def onnx_inputs(obs) -> dict[str, np.ndarray]:
    inputs = obs if isinstance(obs, dict) else {"observation": obs}
    return {key: value.astype(np.float32) if value.dtype == np.float64 else value for key, value in inputs.items()}


@pytest.mark.parametrize("kwargs", CASES.values(), ids=CASES)
def test_the_file_gives_the_actions_of_predict(path, kwargs):
    policy = make_policy(**kwargs)
    export_onnx(policy, path)
    assert [file.name for file in path.parent.iterdir()] == ["policy.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    space = policy.observation_space
    keys = list(space.spaces) if isinstance(space, spaces.Dict) else ["observation"]
    assert [node.name for node in session.get_inputs()] == [*keys, "noise"]
    assert all(node.shape[0] == "batch" for node in session.get_inputs() + session.get_outputs())
    for n in (1, 1000):
        obs = sample(space, n)
        inputs = onnx_inputs(obs)
        for deterministic in (True, False):
            th.manual_seed(0)
            expected, _ = policy.predict(obs, deterministic=deterministic)
            th.manual_seed(0)
            noise = th.zeros(n, 2) if deterministic else th.randn(n, 2)
            actions = session.run(["action"], {**inputs, "noise": noise.numpy()})[0]
            assert actions.shape == expected.shape and actions.dtype == expected.dtype
            np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)
    assert largest_difference(policy, path) < 1e-5
    with th.no_grad():
        policy.actor.velocity_net[-1].bias += 1e-3
    assert largest_difference(policy, path) > 1e-5


@pytest.mark.parametrize("case", ["defaults", "everything changed"])
def test_the_deterministic_file_takes_observations_only(path, case):
    policy = make_policy(**CASES[case])
    export_onnx(policy, path, deterministic=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert "noise" not in {node.name for node in session.get_inputs()}
    obs = sample(policy.observation_space, 7)
    expected, _ = policy.predict(obs, deterministic=True)
    np.testing.assert_allclose(session.run(None, onnx_inputs(obs))[0], expected, rtol=0, atol=1e-5)
    assert largest_difference(policy, path) < 1e-5
    with th.no_grad():
        policy.actor.velocity_net[-1].bias += 1e-3
    assert largest_difference(policy, path) > 1e-5


@pytest.mark.parametrize("deterministic", [True, False])
def test_loading_the_file_warns_of_nothing(path, capfd, deterministic):
    export_onnx(make_policy(), path, deterministic)
    capfd.readouterr()
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert capfd.readouterr() == ("", "")


def test_the_file_is_of_float32_whatever_the_default_is(path):
    policy = make_policy()
    th.set_default_dtype(th.float64)
    try:
        export_onnx(policy, path)
        assert largest_difference(policy, path) < 1e-5
    finally:
        th.set_default_dtype(th.float32)


def test_actions_have_their_shape_and_type_and_stay_inside_bounds_that_round_badly(path, monkeypatch):
    rng = np.random.default_rng(0)
    low, high = (rng.uniform(*bounds, (50, 2)) for bounds in ((-3, 0), (0.1, 5)))
    space = spaces.Box(low, high, dtype=np.float64)
    monkeypatch.setattr("tests.persistence.test_safe_policy.ACTION_SPACE", space)
    policy = make_policy(net_arch=[])
    with th.no_grad():
        for parameter in policy.actor.parameters():
            parameter.mul_(100.0)  # saturates the squashing
    export_onnx(policy, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    noise = rng.normal(size=(100, 100)).astype(np.float32)
    actions = session.run(None, {**onnx_inputs(sample(policy.observation_space, 100)), "noise": noise})[0]
    assert actions.shape == (100, 50, 2) and actions.dtype == np.float64
    assert all(action in space for action in actions)
    assert (actions == space.high).any() and (actions == space.low).any()


@pytest.mark.parametrize("options", slow_except([["--deterministic"]], [[], ["--deterministic"]]))
def test_command(options, path, monkeypatch, capsys):
    model = FlowRL(
        "MultiInputPolicy",
        BitFlippingEnv(continuous=True),
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs=dict(n_sampled_goal=2),
        policy_kwargs=dict(net_arch=[8]),
    )
    model.save(path.with_name("model.zip"))
    monkeypatch.setattr(sys, "argv", ["export", str(path.with_name("model.zip")), str(path), *options])
    command.main()
    output = capsys.readouterr().out
    assert path.exists() and "largest difference from predict on 1000 observations" in output
    assert "ms by predict" in output and "ms by onnxruntime" in output
    assert largest_difference(model, path) < 1e-5
    monkeypatch.setattr(command, "largest_difference", lambda *args: float("nan"))
    monkeypatch.setattr(command, "export_onnx", lambda *args: None)
    with pytest.raises(SystemExit, match="Do not use the file"):
        command.main()


@pytest.mark.parametrize(
    "name, message", [("sac.zip", "another algorithm, with a policy of stable_baselines3.sac"), ("missing", "no file")]
)
def test_command_says_what_a_file_is_that_it_can_not_export(name, message, path, monkeypatch):
    SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8])).save(path.with_name("sac.zip"))
    monkeypatch.setattr(sys, "argv", ["export", str(path.with_name(name)), str(path)])
    with pytest.raises(SystemExit, match=rf"No policy is exported: .*{name}.*{message}|{message}.*{name}"):
        command.main()
    assert not path.exists()


def test_command_names_a_folder_that_is_missing(path, monkeypatch):
    FlowRL("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8])).save(path.with_name("model.zip"))
    monkeypatch.setattr(sys, "argv", ["export", str(path.with_name("model.zip")), str(path.parent / "nowhere" / "p.onnx")])
    with pytest.raises(SystemExit, match=r"No policy is exported: .*nowhere"):
        command.main()


def test_command_on_a_model_whose_buffer_saved_memory(path, monkeypatch):
    kwargs = dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False))
    FlowRL("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8]), **kwargs).save(path.with_name("model.zip"))
    monkeypatch.setattr(sys, "argv", ["export", str(path.with_name("model.zip")), str(path)])
    command.main()
    assert path.exists()


@pytest.mark.parametrize("key", ["tanh", "noise"])
def test_a_key_that_the_graph_uses_itself(path, key):
    space = spaces.Dict({key: spaces.Box(-1, 1, (2,))})
    with pytest.raises(ValueError, match=rf"keys \['{key}'\] .*\. Rename these keys"):
        export_onnx(make_policy(space, MultiInputPolicy), path)
    assert not path.exists()


def test_vec_normalize(path):
    model = FlowRL("MlpPolicy", VecNormalize(make_vec_env("Pendulum-v1")), policy_kwargs=dict(net_arch=[8]))
    with pytest.raises(ValueError, match=r"VecNormalize, whose statistics .* Pass model\.policy"):
        export_onnx(model, path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bounds_that_stand_for_none_are_not_sampled_up_to(dtype):
    largest = np.finfo(dtype).max
    low, high = np.array([-largest, -largest, -2, 0]), np.array([largest, 1, 2, np.inf])
    sample = sample_observations(spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype), 100)
    assert sample.dtype == dtype and np.abs(sample).max() < 1_000
    assert (sample >= low).all() and (sample <= high).all() and sample[:, 2].std() > 0.5


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_a_package(path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    call = largest_difference if package == "onnxruntime" else export_onnx
    with pytest.raises(ImportError, match=rf'needs {package}: pip install "sb3-flowrl\[onnx\]"'):
        call(make_policy(), path)
