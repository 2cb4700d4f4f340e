"""
Register the algorithms of the study ``critics``.

Importing this module (``gym_packages: [studies.critics]`` in a definition) adds to rl_zoo3's algorithms, in this process only:

- ``flowrl_categorical``: FlowRL whose Q_π is a distribution over fixed values (``categorical.py``);
- ``flowrl_unit_norm``: FlowRL whose Q_π keeps the weights of its hidden units at norm 1 (``unit_norm.py``);
- ``flowrl_xqc``: FlowRL with both (``xqc.py``).
"""

from rl_zoo3.utils import ALGOS

from .categorical import CategoricalFlowRL
from .unit_norm import UnitNormFlowRL
from .xqc import XQCFlowRL

ALGOS["flowrl_categorical"] = CategoricalFlowRL
ALGOS["flowrl_unit_norm"] = UnitNormFlowRL
ALGOS["flowrl_xqc"] = XQCFlowRL
