"""
Define FlowRL with XQC's critic: categorical, with hidden units of norm 1.
"""

from .categorical import CategoricalFlowRL
from .unit_norm import UnitNormFlowRL


class XQCFlowRL(UnitNormFlowRL, CategoricalFlowRL):
    """
    FlowRL with a categorical critic Q_π whose hidden units keep weights of norm 1, as XQC (ICLR 2026) has it.

    Takes FlowRL's arguments.

    :raises ValueError: unless rewards are scaled, and Q_π is normalized by batch
    """
