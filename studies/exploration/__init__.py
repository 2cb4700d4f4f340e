"""
Register the algorithm of the study ``exploration``.

Importing this module (``gym_packages: [studies.exploration]`` in a definition) adds ``flowrl_held`` to rl_zoo3's algorithms,
in this process only: FlowRL that explores with noise held for several steps (``held_noise.py``).
"""

from rl_zoo3.utils import ALGOS

from .held_noise import HeldNoiseFlowRL

ALGOS["flowrl_held"] = HeldNoiseFlowRL
