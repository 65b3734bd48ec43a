"""Measures of dependence: distance covariance and its joint forms, kernel measures, and permutation tests."""

from infotorch.core.dependence.distance import (
    distance_correlation,
    distance_correlation_sqr,
    distance_covariance,
    distance_covariance_sqr,
    u_distance_correlation_sqr,
    u_distance_covariance_sqr,
)
from infotorch.core.dependence.joint import (
    ccdcor_sqr,
    ccdcov_sqr,
    group_js_divergence,
    jdcor_sqr,
    jdcov_sqr,
    u_ccdcor_sqr,
    u_ccdcov_sqr,
    u_jdcor_sqr,
    u_jdcov_sqr,
)
from infotorch.core.dependence.kernel import hsic, mmd_sqr, u_hsic, u_mmd_sqr
from infotorch.core.dependence.partial import partial_distance_correlation, partial_distance_covariance
from infotorch.core.dependence.permutation import PermutationTest, independence_test, two_sample_test

__all__ = [
    "PermutationTest",
    "ccdcor_sqr",
    "ccdcov_sqr",
    "distance_correlation",
    "distance_correlation_sqr",
    "distance_covariance",
    "distance_covariance_sqr",
    "group_js_divergence",
    "hsic",
    "independence_test",
    "jdcor_sqr",
    "jdcov_sqr",
    "mmd_sqr",
    "partial_distance_correlation",
    "partial_distance_covariance",
    "two_sample_test",
    "u_ccdcor_sqr",
    "u_ccdcov_sqr",
    "u_distance_correlation_sqr",
    "u_distance_covariance_sqr",
    "u_hsic",
    "u_jdcor_sqr",
    "u_jdcov_sqr",
    "u_mmd_sqr",
]
