"""Joint distributions whose mutual information is known: for tests, benchmarks, tutorials and training sets."""

from infotorch.distributions import transforms
from infotorch.distributions.discrete import DiscreteTable, symmetric_channel
from infotorch.distributions.joint import Entropies, Joint, Transformed
from infotorch.distributions.meta import SEEN_FAMILIES, TRAINING_FAMILIES, UNSEEN_FAMILIES, MetaDistribution, Task
from infotorch.distributions.mixed import DiscreteUniformMixture, ZeroInflatedPoisson
from infotorch.distributions.normal import (
    Normal,
    Student,
    bivariate_normal,
    dense_covariance,
    latent_covariance,
    paired_covariance,
    student_mi,
)
from infotorch.distributions.tasks import beyond_normal_tasks
from infotorch.distributions.uniform import AdditiveUniform, additive_uniform_mi

__all__ = [
    "SEEN_FAMILIES",
    "TRAINING_FAMILIES",
    "UNSEEN_FAMILIES",
    "AdditiveUniform",
    "DiscreteTable",
    "DiscreteUniformMixture",
    "Entropies",
    "Joint",
    "MetaDistribution",
    "Normal",
    "Student",
    "Task",
    "Transformed",
    "ZeroInflatedPoisson",
    "additive_uniform_mi",
    "beyond_normal_tasks",
    "bivariate_normal",
    "dense_covariance",
    "latent_covariance",
    "paired_covariance",
    "student_mi",
    "symmetric_channel",
    "transforms",
]
