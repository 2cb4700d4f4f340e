"""
Register the algorithms and environments of the studies ``worth`` and ``worth_modes``.

Importing this module (``gym_packages: [studies.worth]`` in a definition) adds, in this process only:

- ``flowrl_gaussian`` to rl_zoo3's algorithms: FlowRL with a Gaussian instead of the flow (``gaussian.py``);
- ``imitation`` to the values of FlowRL's ``guidance``: equal weights for all actions of the replay buffer (``imitation.py``);
- ``worth/multi-goal-v0`` and ``worth/two-ways-v0`` to gymnasium's environments (``environments.py``).
"""

import gymnasium as gym
from rl_zoo3.utils import ALGOS

from sb3_flowrl.guidance import GUIDANCES

from .gaussian import GaussianTwin
from .imitation import imitation_guidance

ALGOS["flowrl_gaussian"] = GaussianTwin
GUIDANCES["imitation"] = imitation_guidance
for _name, _class, _limit in (("multi-goal", "MultiGoalEnv", 30), ("two-ways", "TwoWaysEnv", 40)):
    gym.register(f"worth/{_name}-v0", entry_point=f"{__name__}.environments:{_class}", max_episode_steps=_limit)
