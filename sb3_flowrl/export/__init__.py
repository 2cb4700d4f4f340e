"""
A trained policy for inference: as a file without pickles, and as ONNX.
"""

from sb3_flowrl.export.onnx import export_onnx, largest_difference
from sb3_flowrl.export.safe_policy import PolicyFileError, load_policy_safe, save_policy_safe

__all__ = ["PolicyFileError", "export_onnx", "largest_difference", "load_policy_safe", "save_policy_safe"]
