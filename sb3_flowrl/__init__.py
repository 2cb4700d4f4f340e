"""
FlowRL (Lv et al., NeurIPS 2025, arXiv 2506.12811) for Stable-Baselines3.
"""

import os

from sb3_flowrl.flowrl import FlowRL
from sb3_flowrl.policies import FlowActorCriticPolicy, MlpPolicy
from sb3_flowrl.presets import paper_arguments, reference_arguments

# Read version from file
version_file = os.path.join(os.path.dirname(__file__), "version.txt")
with open(version_file) as file_handler:
    __version__ = file_handler.read().strip()

__all__ = ["FlowActorCriticPolicy", "FlowRL", "MlpPolicy", "paper_arguments", "reference_arguments"]
