"""
Checkpoints of whole runs.

A crash never damages a checkpoint, and a run that is resumed from one continues bit for bit.
"""

from sb3_flowrl.checkpoint.callback import ResumableCheckpointCallback
from sb3_flowrl.checkpoint.files import CheckpointError, find_checkpoint, list_checkpoints
from sb3_flowrl.checkpoint.run_identity import OtherRunError

__all__ = ["CheckpointError", "OtherRunError", "ResumableCheckpointCallback", "find_checkpoint", "list_checkpoints"]
