"""
The paper's bandit (Figure 2, Appendix B.4): guided flow matching steers the flow to the better actions.

The behavior data come from a mixture of ten Gaussians with covariance I. Two flows learn from them, starting at N(0, I) with
N = 5 steps. One is guided by f(x) = 1{x > 0}·x with x = Q_β* - Q_π; the other uses plain flow matching. The picture shows the
data, the guided flow with its paths over Q_β* - Q_π, and the unguided flow.

The mixture's means and Q_β* - Q_π are our own choice: a ring of radius 8, and a bump on the ring.

    python examples/toy_bandit.py
"""

import argparse
import math
from pathlib import Path

import torch as th
from torch import nn

from sb3_flowrl import flow, losses
from sb3_flowrl.guidance import Guidance
from sb3_flowrl.networks import create_normed_mlp

FLOW_STEPS = 5
N_COMPONENTS = 10
RADIUS = 8.0
BEST_ACTION = (RADIUS * math.cos(math.pi / 5), RADIUS * math.sin(math.pi / 5))  # the mean of the mixture's second component


def sample_behavior(n: int) -> th.Tensor:
    """Sample n actions of the behavior policy, ``(n, 2)``."""
    angles = 2 * math.pi * th.randint(N_COMPONENTS, (n,)) / N_COMPONENTS
    return RADIUS * th.stack([angles.cos(), angles.sin()], dim=1) + th.randn(n, 2)


def q_difference(actions: th.Tensor) -> th.Tensor:
    """Compute Q_β* - Q_π for actions ``(n, 2)``, as ``(n, 1)``: it is positive within 5.4 of the best action."""
    squared_distance = (actions - th.tensor(BEST_ACTION)).square().sum(dim=1, keepdim=True)
    return th.exp(-squared_distance / 18) - 0.2


def toy_guidance(q_behavior: th.Tensor, q_policy: th.Tensor, w2_coef: float) -> th.Tensor:
    """Compute λ · 1{x > 0} · x, the weights of the paper's Appendix B.4."""
    return w2_coef * th.relu(q_behavior - q_policy)


def no_guidance(q_behavior: th.Tensor, q_policy: th.Tensor, w2_coef: float) -> th.Tensor:
    """Give all actions of the buffer the same weight: plain flow matching."""
    return w2_coef * th.ones_like(q_behavior)


class Flow:
    """
    A flow of actions without a state.

    :param guidance: the weights of the behavior's actions
    """

    def __init__(self, guidance: Guidance):
        self.guidance = guidance
        self.velocity_net = create_normed_mlp(2 + 1, 2, [128, 128], nn.ELU)

    def velocity(self, t: th.Tensor, x: th.Tensor) -> th.Tensor:
        """Evaluate the velocity field at times ``(n, 1)`` and points ``(n, 2)``."""
        return self.velocity_net(th.cat([x, t], dim=1))

    def train(self, updates: int, batch_size: int = 1024) -> "Flow":
        """Train the velocity field on samples of the behavior policy."""
        optimizer = th.optim.Adam(self.velocity_net.parameters(), lr=1e-3)
        for _ in range(updates):
            actions = sample_behavior(batch_size)
            noise = flow.draw_noise(batch_size, 2, actions.device)
            points, path_velocities = flow.straight_path(noise.path, actions, noise.time)
            errors = losses.flow_matching_error(self.velocity(noise.time, points), path_velocities)
            q_behavior = q_difference(actions)  # Q_π is 0
            weights = self.guidance(q_behavior, th.zeros_like(q_behavior), 1.0)
            optimizer.zero_grad()
            losses.weighted_flow_matching_loss(errors, weights).backward()
            optimizer.step()
        return self

    def paths(self, n: int) -> th.Tensor:
        """Sample n paths from the noise to the actions, ``(FLOW_STEPS + 1, n, 2)``."""
        points = [th.randn(n, 2)]
        with th.no_grad():
            for index in range(FLOW_STEPS):
                t = th.full((n, 1), index / FLOW_STEPS)
                points.append(flow.midpoint_step(self.velocity, t, points[-1], 1 / FLOW_STEPS))
        return th.stack(points)


def share_better(actions: th.Tensor) -> float:
    """Compute the share of actions where Q_β* > Q_π."""
    return (q_difference(actions) > 0).float().mean().item()


def draw(behavior: th.Tensor, guided: th.Tensor, unguided: th.Tensor, path: Path) -> None:
    """
    Draw the three panels.

    :param behavior: actions, ``(n, 2)``
    :param guided: paths of the guided flow, ``(FLOW_STEPS + 1, n, 2)``
    :param unguided: paths of the unguided flow
    :param path: the PNG file
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 5), sharex=True, sharey=True, layout="constrained")
    limit = 13
    grid = th.linspace(-limit, limit, 200)
    xy = th.stack(th.meshgrid(grid, grid, indexing="xy"), dim=-1)
    heat = q_difference(xy.reshape(-1, 2)).reshape(200, 200)
    panels = {"behavior in the replay buffer": behavior, "guided flow": guided[-1], "flow without guidance": unguided[-1]}
    for axis, (title, actions) in zip(axes, panels.items(), strict=True):
        axis.contour(grid, grid, heat, levels=[0.0], colors="black", linestyles="dashed")
        axis.scatter(*actions.T, s=4, color="tab:red", zorder=3)
        axis.set(title=f"{title}: {share_better(actions):.0%} where $Q_{{β*}} > Q_π$", aspect="equal")
    image = axes[1].imshow(heat, extent=(-limit, limit, -limit, limit), origin="lower", cmap="viridis")
    axes[1].plot(*guided[:, :150].permute(2, 0, 1), color="white", linewidth=0.6, alpha=0.6)
    figure.colorbar(image, ax=axes[1], label="$Q_{β*} - Q_π$", shrink=0.8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train both flows and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs") / "toy_bandit.png")
    args = parser.parse_args()

    th.manual_seed(args.seed)
    guided = Flow(toy_guidance).train(args.updates).paths(1_000)
    unguided = Flow(no_guidance).train(args.updates).paths(1_000)
    behavior = sample_behavior(1_000)
    for name, actions in ("behavior", behavior), ("guided flow", guided[-1]), ("flow without guidance", unguided[-1]):
        print(f"{name}: {share_better(actions):.1%} of 1000 actions where Q_β* > Q_π")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(behavior, guided, unguided, args.output)
    print(f"Picture: {args.output}")


if __name__ == "__main__":
    main()
