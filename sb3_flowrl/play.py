"""
Watch a trained agent.

    sb3-flowrl play --list                                  what agents there are
    sb3-flowrl play HalfCheetah-v4                          in a window
    sb3-flowrl play dmc/walker-run-v0 --video walker.mp4    without a screen; a .gif works, too
    sb3-flowrl play HalfCheetah-v4 --policy mine.safetensors

``python -m sb3_flowrl.play`` is the same command. An agent is a safe policy file (see ``FlowRL.save_policy_safe``) with a
card: a JSON file that says how it was trained and what it returns.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.error import DependencyNotInstalled, UnregisteredEnv
from stable_baselines3.common.policies import BasePolicy

import sb3_flowrl.envs  # noqa: F401  # registers its ids
from sb3_flowrl.envs.rendering import choose_backend, has_screen
from sb3_flowrl.export.safe_policy import load_policy_safe

#: MuJoCo's number for the type of a geometry that is a plane, ``mujoco.mjtGeom.mjGEOM_PLANE``.
PLANE = 0


class AgentError(Exception):
    """
    Raised when there is no agent to play, or nothing to play it in.
    """


class Agent(NamedTuple):
    """
    A trained agent.

    :ivar policy: its safe policy file
    :ivar card: how it was trained, and what it returns
    """

    policy: Path
    card: dict[str, Any]


class Episode(NamedTuple):
    """
    An episode that was played.

    :ivar total: the undiscounted return
    :ivar length: the number of steps
    :ivar frames: the frames, each ``(height, width, 3)``, the first included; empty without ``render_mode="rgb_array"``
    """

    total: float
    length: int
    frames: list[np.ndarray]


def agents_folder() -> Path:
    """
    Return the folder of the agents.

    :return: the packaged folder, or in a checkout its folder ``agents``
    """
    package = Path(__file__).parent
    packaged = package / "agents"
    return packaged if packaged.is_dir() else package.parent / "agents"


def list_agents(folder: Path | None = None) -> dict[str, Agent]:
    """
    List the agents.

    :param folder: their folder; :func:`agents_folder` by default
    :return: the agents by the ids of their environments
    """
    cards = [
        (path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted((folder or agents_folder()).glob("*.json"))
    ]
    return {card["env_id"]: Agent(path.with_suffix(".safetensors"), card) for path, card in cards}


def find_agent(env_id: str) -> Agent:
    """
    Find the agent of an environment.

    :param env_id: the environment's id
    :return: the agent
    :raises AgentError: if there is none
    """
    agents = list_agents()
    if env_id not in agents:
        name = env_id.rsplit("-v", 1)[0]
        other = next((known for known in agents if known.rsplit("-v", 1)[0] == name), None)
        hint = f"There is one for {other}" if other else "`sb3-flowrl play --list` shows those there are"
        raise AgentError(f"There is no agent for {env_id!r}. {hint}. Or pass a policy file of yours: --policy FILE.")
    return agents[env_id]


def make_env(env_id: str, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """
    Make an environment whose frames follow the robot.

    Gymnasium's MuJoCo environments show a camera that stays where it is, unless the model's own camera is named.

    :param env_id: the environment's id
    :param render_mode: None, "rgb_array" or "human"
    :return: the environment
    :raises AgentError: if it is not registered, or what it needs is not installed
    """
    choose_backend()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
            env = gym.make(env_id, render_mode=render_mode)
            model: Any = getattr(env.unwrapped, "model", None)
            if render_mode is None or not hasattr(model, "ncam"):  # nothing to see, or not a model of MuJoCo's
                return env
            if "track" in [model.camera(index).name for index in range(model.ncam)]:
                env.close()
                env = gym.make(env_id, render_mode=render_mode, camera_name="track")
            _extend_floor(env)
            return env
    except (UnregisteredEnv, ImportError) as error:
        raise AgentError(str(error)) from error
    except DependencyNotInstalled as error:
        extra = "mujoco" if "mujoco" in str(error).lower() else "extra"
        raise AgentError(f"{error} Or install it with: pip install 'sb3-flowrl[{extra}]'") from error


def _extend_floor(env: gym.Env[Any, Any]) -> None:
    """
    Draw an endless floor: fast robots soon run out of the part of it that gymnasium's models show.

    The physics stays the same, because collisions treat every plane as endless.
    """
    model = env.unwrapped.model  # type: ignore[attr-defined]
    for index in np.flatnonzero((model.geom_type == PLANE) & model.geom_size[:, :2].all(axis=1)):
        half_size, material = model.geom_size[index, :2], model.geom_matid[index]
        if material >= 0:  # its texture is repeated so often on the whole plane, or on each meter of an endless one
            model.mat_texrepeat[material] /= 2 * half_size
        half_size[:] = 0.0  # MuJoCo draws such a plane as far as the camera sees


def play_episode(
    policy: BasePolicy,
    env: gym.Env[Any, Any],
    seed: int | None = None,
    deterministic: bool = True,
    max_frames: int | None = None,
    keep_frames: bool = True,
) -> Episode:
    """
    Play an episode.

    :param policy: the policy
    :param env: the environment; its frames are kept if its render mode is "rgb_array"
    :param seed: the seed of the first state
    :param deterministic: whether to play deterministic actions
    :param max_frames: stop when so many frames are kept; ``None`` plays to the end
    :param keep_frames: whether to keep the frames that there are
    :return: the episode
    """
    records = keep_frames and env.render_mode == "rgb_array"
    frames: list[np.ndarray] = []
    total, length, done = 0.0, 0, False
    observation, _ = env.reset(seed=seed)
    while not done and (max_frames is None or len(frames) < max_frames):
        if records:
            frames.append(_frame(env))
        action, _ = policy.predict(observation, deterministic=deterministic)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, length, done = total + float(reward), length + 1, terminated or truncated
    if records and done:
        frames.append(_frame(env))
    return Episode(total, length, frames)


def _frame(env: gym.Env[Any, Any]) -> np.ndarray:
    return np.asarray(env.render(), dtype=np.uint8)


def save_video(frames: Sequence[np.ndarray], fps: float, path: Path) -> None:
    """
    Write frames as a video or an animation.

    :param frames: the frames, each ``(height, width, 3)``
    :param fps: frames per second
    :param path: the file: ``.mp4`` or ``.gif``
    :raises AgentError: for another kind of file, or if what writes it is not installed
    """
    try:
        if path.suffix == ".gif":
            _save_animation(frames, fps, path)
        elif path.suffix == ".mp4":
            import imageio.v2

            imageio.v2.mimwrite(path, list(frames), fps=fps, macro_block_size=None)
        else:
            raise AgentError(f"{path.name} is neither .mp4 nor .gif.")
    except ImportError as error:
        raise AgentError(f"Writing {path.name} needs more packages: pip install 'sb3-flowrl[extra]' ({error})") from error


def _save_animation(frames: Sequence[np.ndarray], fps: float, path: Path) -> None:
    from PIL import Image

    skip = max(1, round(fps / 20))  # viewers slow down animations with more frames per second
    images = [Image.fromarray(frame).quantize(64, dither=Image.Dither.NONE) for frame in frames[::skip]]
    images[0].save(path, save_all=True, append_images=images[1:], duration=10 * round(100 * skip / fps), loop=0, optimize=True)


def describe_agents() -> str:
    """
    Describe the agents in a table.

    :return: one line for each agent
    """
    lines = [f"{'environment':<24}{'steps':>12}  return, deterministic (20 episodes)"]
    for env_id, agent in list_agents().items():
        returns = agent.card["returns"]["deterministic"]
        lines.append(f"{env_id:<24}{agent.card['steps']:>12,}  {returns['mean']:,.0f} ± {returns['std']:,.0f}")
    return "\n".join(lines)


def main() -> None:
    """
    Run the command.
    """
    parser = argparse.ArgumentParser(
        "sb3-flowrl play", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("env", nargs="?", help="id of the environment")
    parser.add_argument("--list", action="store_true", help="list the agents")
    parser.add_argument("--policy", type=Path, help="play this safe policy file instead of our agent")
    parser.add_argument("--video", type=Path, help="write the first episode to this .mp4 or .gif")
    parser.add_argument("--episodes", type=int, default=1, help="number of episodes (%(default)s)")
    parser.add_argument("--stochastic", action="store_true", help="play random actions of the flow, not the deterministic one")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode (%(default)s)")
    args = parser.parse_args()
    if args.list:
        print(describe_agents())
        return
    if args.env is None:
        parser.error("name an environment, or pass --list")
    if args.episodes < 1:
        parser.error(f"--episodes {args.episodes} must be at least 1")
    if args.video is not None and (args.video.suffix not in (".mp4", ".gif") or not args.video.parent.is_dir()):
        parser.error(f"--video {args.video} must be an .mp4 or .gif in a folder that exists")
    try:
        _play(args)
    except (AgentError, ImportError, ValueError) as error:
        sys.exit(f"Nothing is played: {error}")


def _play(args: argparse.Namespace) -> None:
    path = args.policy or find_agent(args.env).policy
    render_mode = "rgb_array" if args.video else "human" if has_screen() else None
    env = make_env(args.env, render_mode)
    policy = load_policy_safe(path, device="cpu")
    if policy.observation_space.shape != env.observation_space.shape or policy.action_space.shape != env.action_space.shape:
        raise AgentError(
            f"{path} was trained on observations of shape {policy.observation_space.shape} and actions of shape "
            f"{policy.action_space.shape}; {args.env} has {env.observation_space.shape} and {env.action_space.shape}."
        )
    if render_mode is None:
        print("There is no screen. Pass --video walk.mp4 to see the agent.")
    for number in range(args.episodes):
        episode = play_episode(policy, env, args.seed + number, not args.stochastic, keep_frames=number == 0)
        print(f"{args.env}, seed {args.seed + number}: return {episode.total:,.1f} in {episode.length} steps")
        if args.video and number == 0:
            save_video(episode.frames, env.metadata.get("render_fps", 30), args.video)
            print(f"Video: {args.video}")
    env.close()


if __name__ == "__main__":
    main()
