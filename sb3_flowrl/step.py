"""
The step of an optimiser, which a loss that has exploded may not take.
"""

from collections.abc import Sequence

import torch as th


def step(optimizers: Sequence[th.optim.Optimizer], loss: th.Tensor, has_diverged: th.Tensor) -> th.Tensor:
    """
    Descend a loss, unless it or one before it is not finite: the networks would never recover from that.

    A fused optimiser skips the step by itself, as it does for PyTorch's ``GradScaler``, so that nobody waits for the
    accelerator to look at the loss. For others the loss is looked at here.

    :param optimizers: the optimisers of all parameters that the loss trains
    :param loss: a scalar, with its graph
    :param has_diverged: 1 where a loss before this one was not finite, else 0, a scalar
    :return: the same with this loss
    """
    has_diverged = has_diverged.maximum((~loss.detach().isfinite()).float())
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = has_diverged  # type: ignore[attr-defined]
        elif has_diverged.item():
            continue
        optimizer.step()
    return has_diverged
