"""Watching trained agents: each one is as good as its card says, and what can't be played is said."""

import json
import sys

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from sb3_flowrl import FlowRL, play
from sb3_flowrl.envs import MissingSuiteError
from sb3_flowrl.export import load_policy_safe
from sb3_flowrl.play import AgentError, find_agent, list_agents, make_env, play_episode
from tests import paper_tasks
from tests.integration.test_envs_rendering import BACKEND, needs_renderer, python
from tests.marks import slow_except

AGENTS = list_agents()

# 300 meters from where the robot started: the share of the frame that it takes (what changes when it is hidden), and the
# contrast of the floor's squares below it
ROBOT_IN_FRAME = """
import sys
from sb3_flowrl.play import make_env
env = make_env(sys.argv[1], "rgb_array")
env.reset(seed=0)
env.render()  # a camera that does not follow looks at where the robot is now
simulation = env.unwrapped
position = simulation.data.qpos.copy()
position[0] += 300
simulation.set_state(position, simulation.data.qvel)
frame = env.render()
simulation.model.geom_rgba[simulation.model.geom_bodyid > 0, 3] = 0
floor = env.render()
print((floor != frame).any(axis=-1).mean(), floor[-100:].std())
"""

# After two seconds of random actions in the DeepMind Control Suite: the share of the frame that the robot takes
ROBOT_OF_DM_CONTROL = """
import sys
from sb3_flowrl.play import make_env
env = make_env(sys.argv[1], "rgb_array")
env.reset(seed=0)
env.action_space.seed(0)
for _ in range(2 * env.metadata["render_fps"]):
    env.step(env.action_space.sample())
frame = env.render()
model = env.unwrapped._env.physics.model
model.geom_rgba[model.geom_bodyid > 0, 3] = 0
model.skin_rgba[:, 3] = 0
print((env.render() != frame).any(axis=-1).mean())
"""


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["play", *arguments])
        play.main()
        return capsys.readouterr().out

    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    return run


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy") / "pendulum.safetensors"
    FlowRL("MlpPolicy", "Pendulum-v1", buffer_size=1, seed=0, policy_kwargs=dict(net_arch=[8])).save_policy_safe(path)
    return path


@pytest.mark.parametrize("env_id", slow_except(["HalfCheetah-v4", "dmc/walker-run-v0"], AGENTS))
def test_an_agent_is_as_good_as_its_card_says(env_id):
    agent = AGENTS[env_id]
    try:
        env = make_env(env_id)
    except AgentError as error:
        pytest.skip(str(error))
    actor = load_policy_safe(agent.policy, device="cpu")
    for mode in ("deterministic", "stochastic"):
        card = agent.card["returns"][mode]
        n_episodes = 4 if card["std"] > 0.2 * abs(card["mean"]) else 2
        played = [play_episode(actor, env, seed, mode == "deterministic").total for seed in range(n_episodes)]
        # A few episodes against the spread of twenty; simulators' versions differ a little, too
        difference = abs(np.mean(played) - card["mean"])
        assert difference <= 3 * card["std"] / n_episodes**0.5 + 0.05 * abs(card["mean"]), mode


@pytest.mark.parametrize("env_id", AGENTS)
def test_an_agents_files_are_small_and_say_where_they_are_from(env_id):
    policy, card = AGENTS[env_id]
    assert policy.stat().st_size < 1_000_000
    assert card.keys() >= {"steps", "seed", "run", "command", "commits", "versions", "hyperparameters", "played_with"}
    assert all(len(card["returns"][mode]["returns"]) == 20 for mode in ("deterministic", "stochastic"))


def test_list_shows_each_agent(command):
    lines = command("--list").splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(AGENTS)


def test_a_policy_of_ones_own_is_played(command, policy):
    output = command("Pendulum-v1", "--policy", str(policy), "--episodes", "2", "--seed", "5")
    assert "Pendulum-v1, seed 5: return -" in output and "seed 6: return" in output and "in 200 steps" in output
    assert "There is no screen. Pass --video" in output
    assert command("Pendulum-v1", "--policy", str(policy), "--stochastic") != command("Pendulum-v1", "--policy", str(policy))


@pytest.mark.parametrize("name", ["film.gif", "film.mp4"])
def test_a_video_has_all_frames_at_their_speed(command, policy, tmp_path, name):
    pytest.importorskip("pygame")
    imageio = pytest.importorskip("imageio.v2")
    path = tmp_path / name
    assert f"Video: {path}" in command("Pendulum-v1", "--policy", str(policy), "--video", str(path))
    if name.endswith("gif"):
        film = Image.open(path)
        assert film.n_frames == pytest.approx(101, abs=2) and film.info["duration"] == pytest.approx(67, abs=3)
    else:
        reader = imageio.get_reader(path)
        assert reader.count_frames() == 201 and reader.get_meta_data()["fps"] == 30


@needs_renderer
@paper_tasks.needs_mujoco
@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Walker2d-v4"])
def test_the_video_follows_a_robot_that_runs_far(env_id):
    result = python(ROBOT_IN_FRAME, env_id, MUJOCO_GL=BACKEND)
    assert result.returncode == 0, result.stderr
    robot, contrast = map(float, result.stdout.split())
    assert robot > 0.01
    assert contrast > 30  # 5 and 8 where gymnasium's floor has ended


@needs_renderer
@paper_tasks.needs_dmc
@pytest.mark.parametrize("domain", slow_except(["walker-run"], ["walker-run", "quadruped-walk", "dog-stand", "humanoid-walk"]))
def test_robots_of_dm_control_are_in_the_frame(domain):
    result = python(ROBOT_OF_DM_CONTROL, f"dmc/{domain}-v0")
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) > 0.01


class ModelOfAnotherKind(gym.Env):
    """An environment whose ``model`` is not MuJoCo's."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (1,))
    model = "a model"

    def __init__(self, render_mode=None):
        self.render_mode = render_mode


def test_a_model_that_is_not_mujocos_is_left_alone(monkeypatch):
    spec = gym.envs.registration.EnvSpec("OtherModel-v0", entry_point=ModelOfAnotherKind)
    monkeypatch.setitem(gym.registry, "OtherModel-v0", spec)
    assert make_env("OtherModel-v0", "rgb_array").unwrapped.model == "a model"


def test_what_can_not_be_played_is_said(command, policy, monkeypatch):
    def stop(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            command(*arguments)
        return str(stopped.value)

    monkeypatch.setattr(play, "list_agents", lambda: {"Walker2d-v4": None})
    assert "no agent for 'Walker2d-v9'. There is one for Walker2d-v4." in stop("Walker2d-v9")
    assert "no agent for 'Juggler-v0'. `sb3-flowrl play --list` shows" in stop("Juggler-v0")
    assert "trained on observations of shape (3,)" in stop("MountainCarContinuous-v0", "--policy", str(policy))
    assert "there is no such file" in stop("Pendulum-v1", "--policy", "nothing.safetensors")
    assert "Juggler" in stop("Juggler-v0", "--policy", str(policy))
    assert stop() == "2" and stop("Pendulum-v1", "--video", "film.avi") == stop("Pendulum-v1", "--episodes", "0") == "2"

    def make(**_):
        raise MissingSuiteError("The Suite", "Install it with: pip install suite", "no module")

    monkeypatch.setitem(gym.registry, "missing-v0", gym.envs.registration.EnvSpec("missing-v0", entry_point=make))
    assert "Install it with: pip install suite" in stop("missing-v0", "--policy", str(policy))


def test_an_agent_is_found_by_its_environment(tmp_path, monkeypatch):
    (tmp_path / "dmc-dog-run-v0.json").write_text(json.dumps(dict(env_id="dmc/dog-run-v0")))
    monkeypatch.setattr(play, "agents_folder", lambda: tmp_path)
    assert find_agent("dmc/dog-run-v0").policy == tmp_path / "dmc-dog-run-v0.safetensors"
