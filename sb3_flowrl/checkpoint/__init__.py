"""
Checkpoints of whole runs: written so that no crash damages one, read so that the run goes on bit for bit.
"""

from sb3_flowrl.checkpoint.callback import ResumableCheckpointCallback
from sb3_flowrl.checkpoint.files import CheckpointError, find_checkpoint, list_checkpoints
from sb3_flowrl.checkpoint.run_identity import OtherRunError

__all__ = ["CheckpointError", "OtherRunError", "ResumableCheckpointCallback", "find_checkpoint", "list_checkpoints"]
