"""The weights of the constraint."""

import numpy as np
import pytest
import torch as th

from sb3_flowrl.guidance import GUIDANCES, paper_guidance, reference_guidance, uncapped_guidance

Q_BEHAVIOR = th.tensor([[1.0], [-2.0], [3.0], [0.5]])
Q_POLICY = th.tensor([[0.0], [1.0], [-1.5], [0.5]])
X = (Q_BEHAVIOR - Q_POLICY).numpy().astype(np.float64)  # 1, -3, 4.5, 0


def test_uncapped_guidance_is_the_papers_f():
    expected = 0.7 * (X > 0) * np.exp(X - X.mean())
    np.testing.assert_allclose(uncapped_guidance(Q_BEHAVIOR, Q_POLICY, 0.7), expected, rtol=1e-6)
    assert expected.max() > 1


def test_paper_guidance_caps_it_with_lambda_inside():
    for w2_coef in (0.01, 0.7, 5.0):
        expected = np.minimum(w2_coef * (X > 0) * np.exp(X - X.mean()), 1.0)
        np.testing.assert_allclose(paper_guidance(Q_BEHAVIOR, Q_POLICY, w2_coef), expected, rtol=1e-6)


def test_reference_guidance_is_the_authors_formula():
    relu = np.maximum(X, 0)
    for w2_coef in (0.0, 0.1, 5.0):
        expected = np.clip(w2_coef * np.exp(relu - relu.mean()), 1e-3, 1.0)
        np.testing.assert_allclose(reference_guidance(Q_BEHAVIOR, Q_POLICY, w2_coef), expected, rtol=1e-6)


def test_no_weight_where_the_policy_is_no_worse_than_the_behavior():
    weights = paper_guidance(Q_BEHAVIOR, Q_POLICY, 0.1)
    assert th.equal(weights > 0, Q_BEHAVIOR > Q_POLICY)


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("w2_coef", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_weights_are_finite_and_bounded_however_large_the_values(name, w2_coef, scale):
    th.manual_seed(0)
    weights = GUIDANCES[name](scale * th.randn(256, 1), scale * th.randn(256, 1), w2_coef)
    assert weights.shape == (256, 1)
    assert th.isfinite(weights).all() and weights.min() >= 0 and weights.max() <= 1
    if name == "paper" and w2_coef == 0.0:
        assert not weights.any()
