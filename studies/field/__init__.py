"""
Register the algorithm of the study ``field``.

Importing this module (``gym_packages: [studies.field]`` in a definition) adds ``flowrl_affine_field`` to rl_zoo3's
algorithms, in this process only: FlowRL whose velocity field starts as a Gaussian's (``affine.py``).
"""

from rl_zoo3.utils import ALGOS

from .affine import AffineFieldFlowRL

ALGOS["flowrl_affine_field"] = AffineFieldFlowRL
