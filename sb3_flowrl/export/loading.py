"""
Loading of a model that will only predict.
"""

from pathlib import Path
from typing import Any

from sb3_flowrl.flowrl import FlowRL


def load_to_predict(path: str | Path) -> FlowRL:
    """
    Load a model on the CPU, without the replay buffer that it was trained with.

    :param path: file that ``FlowRL.save`` wrote; it is unpickled, so load only files that you trust
    :return: the model
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if another algorithm saved the file
    """
    no_buffer: dict[str, Any] = dict(
        buffer_size=1, replay_buffer_class=None, replay_buffer_kwargs={}, optimize_memory_usage=False, n_steps=1
    )
    return FlowRL.load(path, device="cpu", **no_buffer)
