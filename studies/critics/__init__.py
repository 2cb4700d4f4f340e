"""
Register the algorithm of the study ``critics``.

Importing this module (``gym_packages: [studies.critics]`` in a definition) adds ``flowrl_unit_norm`` to rl_zoo3's algorithms,
in this process only: FlowRL whose Q_π keeps the weights of its hidden units at norm 1 (``unit_norm.py``).
"""

from rl_zoo3.utils import ALGOS

from .unit_norm import UnitNormFlowRL

ALGOS["flowrl_unit_norm"] = UnitNormFlowRL
