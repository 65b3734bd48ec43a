"""Mutual information by training a network: bounds of a critic, and bounds of a conditional density."""

from infotorch.estimators.neural.lower import JSMI, MINE, NWJ, SMILE, TUBA, AlphaTUBA, DonskerVaradhan, InfoNCE
from infotorch.estimators.neural.upper import CLUB, LeaveOneOut

__all__ = [
    "CLUB",
    "JSMI",
    "MINE",
    "NWJ",
    "SMILE",
    "TUBA",
    "AlphaTUBA",
    "DonskerVaradhan",
    "InfoNCE",
    "LeaveOneOut",
]
