"""adjust_p_values against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from infotorch.estimators import adjust_p_values

probabilities = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.5, 1.0])), min_size=1, max_size=30)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(probabilities)
def test_against_scipy(p):
    for method, short in (("benjamini_hochberg", "bh"), ("benjamini_yekutieli", "by")):
        np.testing.assert_allclose(adjust_p_values(p, method), false_discovery_control(p, method=short), rtol=1e-12)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(probabilities)
def test_holm_and_bonferroni_against_a_loop(p):
    m, order, running = len(p), np.argsort(p, kind="stable"), 0.0
    want = np.empty(m)
    for step, i in enumerate(order):
        running = max(running, (m - step) * p[i])
        want[i] = min(1.0, running)
    np.testing.assert_allclose(adjust_p_values(p, "holm"), want, rtol=1e-12)
    bonferroni = adjust_p_values(p, "bonferroni")
    np.testing.assert_allclose(bonferroni, np.minimum(1, m * np.array(p)), rtol=1e-12)
    assert (want <= bonferroni + 1e-15).all()
    assert (adjust_p_values(p) <= want + 1e-15).all()


def test_by_hand():
    p = [0.01, 0.02, 0.03, 0.2]
    np.testing.assert_allclose(adjust_p_values(p, "bonferroni"), [0.04, 0.08, 0.12, 0.8])
    np.testing.assert_allclose(adjust_p_values(p, "holm"), [0.04, 0.06, 0.06, 0.2])
    np.testing.assert_allclose(adjust_p_values(p), [0.04, 0.04, 0.04, 0.2])
    factor = 1 + 1 / 2 + 1 / 3 + 1 / 4
    np.testing.assert_allclose(adjust_p_values(p, "benjamini_yekutieli"), factor * np.array([0.04, 0.04, 0.04, 0.2]))


@pytest.mark.parametrize("method", ["holm", "benjamini_hochberg", "benjamini_yekutieli", "bonferroni"])
def test_shapes_and_kinds(method):
    p = torch.tensor([[0.5, 0.01], [0.02, 1.0]])
    found = adjust_p_values(p, method)
    assert isinstance(found, torch.Tensor)
    assert found.shape == (2, 2)
    want = adjust_p_values(p.double().flatten().numpy(), method)
    np.testing.assert_array_equal(found.flatten(), want)
    assert p[0, 0] == 0.5
    assert adjust_p_values(0.3, method) == pytest.approx(0.3)
    assert adjust_p_values([], method).shape == (0,)


def test_errors():
    for p in ([0.5, 1.1], [-0.1], [float("nan")]):
        with pytest.raises(ValueError, match=r"p: expected numbers in \[0, 1\], got 1 others"):
            adjust_p_values(p)
    with pytest.raises(ValueError, match=r"method: expected one of holm.*did you mean 'bonferroni'"):
        adjust_p_values([0.5], "bonferoni")
