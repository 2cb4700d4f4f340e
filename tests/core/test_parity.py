"""
FlowRL's updates against the numbers of the authors' code, through the ``train()`` that users run.
"""

import numpy as np
import pytest

from sb3_flowrl import guidance
from tests.golden import (
    GOLDEN_DIR,
    N_UPDATES,
    NETWORKS,
    GoldenRun,
    authors_names,
    golden_sets,
    load_golden_set,
    named_tensors,
)

# Limits that GOLDEN.md suggests: the data itself is accurate to about a tenth of them
LOSS_RTOL = 1e-5  # of the array's largest entry
GRADIENT_RTOL = 5e-5  # of the tensor's largest entry
PARAMETER_ATOL = 3e-5  # one Adam step is 3e-4

LOSSES = {"critic_loss", "critic_buffer_loss", "v_loss", "policy_loss"}
#: The loss that each network's optimiser minimises, by the authors' names.
LOSS_OF_NETWORK = {
    "critic": "critic_loss",
    "behavior_critic": "critic_buffer_loss",
    "behavior_value": "v_loss",
    "actor": "policy_loss",
}


def assert_close(actual, expected, rtol: float, what: str) -> None:
    scale = np.abs(expected).max()
    worst = np.abs(actual.reshape(expected.shape) - expected).max()
    assert worst <= rtol * scale, f"{what}: off by {worst:.3g}, allowed {rtol} of {scale:.3g}"


def check_intermediates(run: GoldenRun, prefix: str) -> int:
    """Compare every loss and intermediate that the set holds; return how many were compared."""
    compared = 0
    for update, seen in enumerate(run.seen):
        for name, actual in seen.items():
            # the values of the per-sample run are under ps/; what does not depend on the weights is not repeated there
            key = f"{prefix}u{update}/{name}"
            if key in run.data:
                assert_close(actual, run.data[key], LOSS_RTOL, key)
                compared += 1
            assert key in run.data or name not in LOSSES, f"the set lacks {key}"
    return compared


def check_gradients(run: GoldenRun, networks) -> None:
    for network in networks:
        loss = LOSS_OF_NETWORK[network]
        prefix = "ps/" if run.model.per_sample and network == "actor" else ""
        for name in authors_names(network):
            key = f"{prefix}u0/grad/{loss}/{name}"
            assert_close(run.seen[0][f"grad/{name}"], run.data[key], GRADIENT_RTOL, key)


def check_parameters(run: GoldenRun, prefix: str) -> None:
    for name, actual in run.parameters().items():
        # after one update only the actor depends on the weights, so ps/ repeats nothing else
        key = prefix + name if prefix + name in run.data else prefix.removeprefix("ps/") + name
        worst = np.abs(actual - run.data[key]).max()
        assert worst <= PARAMETER_ATOL, f"{key}: off by {worst:.3g}, allowed {PARAMETER_ATOL}"


def check_adam_moments(run: GoldenRun) -> None:
    for network in LOSS_OF_NETWORK:
        model = getattr(run.model, network)
        for ours, authors in (("exp_avg", "adam_m"), ("exp_avg_sq", "adam_v")):
            moments = named_tensors(network, [model.optimizer.state[parameter][ours] for parameter in model.parameters()])
            for name, moment in moments.items():
                key = f"after4/{authors}/{name}"
                assert_close(moment.cpu().numpy(), run.data[key], 1e-3, key)


def check_parity(data, per_sample: bool, monkeypatch: pytest.MonkeyPatch, **options) -> None:
    prefix = "ps/" if per_sample else ""

    first = GoldenRun(data, per_sample, **options).run(monkeypatch, calls=1, until=1)
    check_gradients(first, LOSS_OF_NETWORK)
    check_parameters(first, f"{prefix}after1/")

    run = GoldenRun(data, per_sample, **options).run(monkeypatch)
    compared = check_intermediates(run, prefix)
    assert compared >= (16 if per_sample else 40), f"only {compared} losses and intermediates were compared"
    check_parameters(run, f"{prefix}after4/")
    if not per_sample:
        check_adam_moments(run)


@pytest.fixture(params=golden_sets(), ids=lambda path: path.stem)
def data(request):
    return load_golden_set(request.param)


def test_there_are_golden_sets():
    assert golden_sets(), f"no golden set (*.npz) in {GOLDEN_DIR}"


@pytest.mark.parametrize("per_sample", [False, True], ids=["scalar", "per_sample"])
def test_parity_with_the_authors_code(data, per_sample, monkeypatch):
    check_parity(data, per_sample, monkeypatch)


@pytest.mark.parametrize("network", NETWORKS)
def test_parity_fails_when_one_weight_is_perturbed(data, network, monkeypatch):
    name = authors_names(network)[0]
    perturbed = data[f"init/{name}"].copy()
    perturbed[0, 0] += 0.01
    with pytest.raises(AssertionError, match=r"off by"):
        check_parity({**data, f"init/{name}": perturbed}, False, monkeypatch)


def test_how_updates_are_spread_over_calls_of_train_does_not_matter(data, monkeypatch):
    in_one_call = GoldenRun(data, False).run(monkeypatch, calls=1).parameters()
    in_four_calls = GoldenRun(data, False).run(monkeypatch, calls=N_UPDATES).parameters()
    for name, values in in_one_call.items():
        np.testing.assert_array_equal(values, in_four_calls[name], err_msg=name)


def test_weight_bounds_are_the_authors(data):
    assert guidance.REFERENCE_WEIGHT_MIN == float(data["meta/cfm_min"])
    assert guidance.WEIGHT_MAX == float(data["meta/cfm_max"])
