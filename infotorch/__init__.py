"""infotorch: entropy and mutual information for PyTorch, and the published methods built on them.

Import the room you need: ``infotorch.core`` (tensors in, tensors out), ``infotorch.losses`` (policy
optimisation of language models), ``infotorch.rollout`` (sampling), ``infotorch.rlvr`` (training with
Lightning). Nothing heavy is imported here.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("infotorch")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
