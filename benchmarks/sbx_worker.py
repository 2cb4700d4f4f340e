"""
Run SBX's SAC as a contender of ``bench_learn.py``, which starts this script in SBX's own virtual environment.

The first answer on standard output holds the versions of the packages. Then each line of standard input is a number of steps
to learn, and an answer follows when they are done.
"""

import json
import sys
import warnings
from importlib.metadata import version

#: Marks the lines that are answers, because libraries print to standard output too.
ANSWER = "sbx_worker: "


def main(env_id: str, n_envs: int, learning_starts: int) -> None:
    """
    Learn for as many steps as standard input asks for, until it ends.

    :param env_id: the environment
    :param n_envs: number of environments
    :param learning_starts: steps before learning starts
    """
    from sbx import SAC
    from stable_baselines3.common.env_util import make_vec_env

    warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
    model = SAC(
        "MlpPolicy",
        make_vec_env(env_id, n_envs),
        policy_kwargs=dict(net_arch=[256, 256]),
        learning_starts=learning_starts,
        gradient_steps=1 if n_envs == 1 else -1,
    )
    packages = ("sbx-rl", "jax", "jaxlib", "flax", "stable-baselines3", "gymnasium", "mujoco", "numpy")
    print(ANSWER + json.dumps({package: version(package) for package in packages}), flush=True)
    for line in sys.stdin:
        model.learn(int(line), reset_num_timesteps=False)
        print(ANSWER + "done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
