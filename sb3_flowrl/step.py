"""
The step of the optimisers, which a loss that has exploded may not take.
"""

from collections.abc import Sequence

import torch as th

from sb3_flowrl.update import Gradients


def step(
    optimizers: Sequence[th.optim.Optimizer], leaves: Sequence[th.Tensor], found: Gradients, has_diverged: th.Tensor
) -> th.Tensor:
    """
    Descend a loss, unless it or one before it is not finite: the networks would never recover from that.

    A fused optimiser skips the step by itself, as it does for PyTorch's ``GradScaler``, so that nobody waits for the
    accelerator to look at the loss. For others the loss is looked at here.

    :param optimizers: the optimisers of all parameters that the loss trains
    :param leaves: these parameters, and the features that come from features extractors
    :param found: their gradients
    :param has_diverged: 1 where a loss before this one was not finite, else 0, a scalar
    :return: the same with this loss
    """
    has_diverged = has_diverged.maximum(found.has_diverged)
    hand_out(optimizers, leaves, found.gradients)
    for optimizer in optimizers:
        # Not optimizer.defaults: loading an optimiser's state replaces its groups' options
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = has_diverged  # type: ignore[attr-defined]
        elif has_diverged.item():
            continue
        optimizer.step()
    return has_diverged


def hand_out(optimizers: Sequence[th.optim.Optimizer], leaves: Sequence[th.Tensor], gradients: Sequence[th.Tensor]) -> None:
    """
    Give parameters their gradients, those of features extractors by way of the features.

    :param optimizers: the optimisers of all parameters
    :param leaves: parameters, and features that come from features extractors
    :param gradients: one for each of them, of its shape
    """
    features = [(leaf, gradient) for leaf, gradient in zip(leaves, gradients, strict=True) if not leaf.is_leaf]
    if features:
        for optimizer in optimizers:
            optimizer.zero_grad()
        th.autograd.backward([leaf for leaf, _ in features], [gradient for _, gradient in features])
    for leaf, gradient in zip(leaves, gradients, strict=True):
        if leaf.is_leaf:
            leaf.grad = gradient
