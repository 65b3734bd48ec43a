"""The 40 tasks of the "Beyond Normal" benchmark.

Reference: P. Czyż et al., "Beyond normal: On the evaluation of mutual information estimators", 2023,
arXiv:2306.11078.
"""

from __future__ import annotations

from functools import partial

import torch

from infotorch.distributions import transforms as t
from infotorch.distributions.joint import Joint
from infotorch.distributions.normal import Normal, Student, bivariate_normal, dense_covariance, paired_covariance
from infotorch.distributions.uniform import AdditiveUniform


def beyond_normal_tasks() -> dict[str, Joint]:
    """All tasks by their published identifiers, in the published order.

    >>> tasks = beyond_normal_tasks()
    >>> len(tasks), round(tasks["1v1-normal-0.75"].mutual_information(), 4)
    (40, 0.4133)
    """
    base = bivariate_normal(0.75)
    uniform = base.transform(t.normal_cdf, t.normal_cdf)
    tasks: dict[str, Joint] = {
        "1v1-normal-0.75": base,
        "normal_cdf-1v1-normal-0.75": uniform,
        "1v1-additive-0.1": AdditiveUniform((0.1,)),
        "1v1-additive-0.75": AdditiveUniform((0.75,)),
        "1v1-bimodal-0.75": base.transform(
            t.normal_to_mixture((0.3, 0.7), (0.0, 5.0)), t.normal_to_mixture((0.5, 0.5), (-1.0, 3.0))
        ),
        "wiggly-1v1-normal-0.75": base.transform(t.wiggly_x, t.wiggly_y),
        "half_cube-1v1-normal-0.75": base.transform(t.half_cube, t.half_cube),
        "student-identity-1-1-1": _student(1, 1),
        "asinh-student-identity-1-1-1": _asinh(_student(1, 1)),
        "swissroll_x-normal_cdf-1v1-normal-0.75": uniform.transform(t.swiss_roll),
    }
    for d in (2, 3, 5, 25, 50):
        tasks[f"multinormal-dense-{d}-{d}-0.5"] = Normal(dense_covariance(2 * d, 0.5), d)
    pairs = {d: Normal(paired_covariance(d, d), d) for d in (2, 3, 5, 25)}
    for d, joint in pairs.items():
        tasks[f"multinormal-sparse-{d}-{d}-2-2.0"] = joint
    for d, df in ((2, 1), (2, 2), (3, 2), (3, 3), (5, 2), (5, 3)):
        tasks[f"student-identity-{d}-{d}-{df}"] = _student(d, df)
    large = {f"multinormal-sparse-{d}-{d}-2-2.0": pairs[d] for d in (3, 5, 25)}
    turn_x, turn_y = partial(t.spiral, plane=(0, 1)), partial(t.spiral, plane=(1, 2))
    tasks |= {f"normal_cdf-{name}": joint.transform(t.normal_cdf, t.normal_cdf) for name, joint in large.items()}
    tasks |= {f"half_cube-{name}": joint.transform(t.half_cube, t.half_cube) for name, joint in large.items()}
    tasks |= {f"spiral-{name}": joint.transform(turn_x, turn_y) for name, joint in large.items()}
    tasks |= {
        f"spiral-normal_cdf-{name}": joint.transform(t.normal_cdf, t.normal_cdf).transform(turn_x, turn_y)
        for name, joint in large.items()
    }
    for d, df in ((2, 1), (3, 2), (5, 2)):
        tasks[f"asinh-student-identity-{d}-{d}-{df}"] = _asinh(_student(d, df))
    return tasks


def _student(dim: int, df: int) -> Student:
    return Student(torch.eye(2 * dim), dim, float(df))


def _asinh(joint: Joint) -> Joint:
    return joint.transform(torch.asinh, torch.asinh)
