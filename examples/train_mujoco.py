"""
Train FlowRL on a MuJoCo task, evaluate it, save it, load it again, and record a video if a renderer is available.

    python examples/train_mujoco.py
    python examples/train_mujoco.py --env Walker2d-v5 --timesteps 1e6 --seed 1

The default takes a few minutes on two processor cores.
"""

import argparse
from pathlib import Path

import gymnasium as gym
from gymnasium.wrappers import RecordVideo
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_flowrl import FlowRL
from sb3_flowrl.play import make_env


def record_video(model: FlowRL, env_id: str, folder: Path) -> Path | None:
    """
    Record one episode.

    :param model: the trained model
    :param env_id: the environment
    :param folder: the folder for the video
    :return: the video file, or None if nothing can render
    """
    try:
        env = make_env(env_id, "rgb_array")
        env = RecordVideo(env, str(folder), episode_trigger=lambda i: i == 0, name_prefix="flowrl", disable_logger=True)
        evaluate_policy(model, env, n_eval_episodes=1, warn=False)
        env.close()
    except Exception as error:  # renderers raise different errors, and the video is optional
        print(f"No video, because nothing could render it: {error!r}")
        return None
    return folder / "flowrl-episode-0.mp4"


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5", help="any environment with continuous actions")
    parser.add_argument("--timesteps", type=float, default=8e3)
    parser.add_argument("--learning-starts", type=int, default=1_000, help="random first steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="folder for the model and the video")
    args = parser.parse_args()

    model = FlowRL(
        "MlpPolicy",
        args.env,
        learning_starts=args.learning_starts,
        seed=args.seed,
    )
    eval_env = Monitor(gym.make(args.env))
    before, _ = evaluate_policy(model, eval_env, n_eval_episodes=5)
    model.learn(args.timesteps, progress_bar=True)

    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / f"flowrl-{args.env}"
    model.save(path)
    model = FlowRL.load(path, env=eval_env)
    mean, std = evaluate_policy(model, eval_env, n_eval_episodes=5)
    print(f"{args.env}, mean return of 5 episodes: {before:.0f} before training, {mean:.0f} ± {std:.0f} after")
    print(f"Model: {path}.zip")
    if video := record_video(model, args.env, args.folder / "video"):
        print(f"Video: {video}")


if __name__ == "__main__":
    main()
