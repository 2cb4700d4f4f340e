"""
Register the algorithm of the study ``screens``.

Importing this module (``gym_packages: [studies.screens]`` in a definition) adds ``flowrl_self_guided`` to rl_zoo3's
algorithms, in this process only: FlowRL that compares actions by Q_π alone (``self_guided.py``).
"""

from rl_zoo3.utils import ALGOS

from .self_guided import SelfGuidedFlowRL

ALGOS["flowrl_self_guided"] = SelfGuidedFlowRL
