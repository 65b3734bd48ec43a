"""Value learning by classification: DQN and its offline variant with HL-Gauss, two-hot, C51 and scalar heads.

The Lightning modules are imported on first use. Environments need gymnasium (``pip install 'infotorch[rl]'``).
"""

from typing import TYPE_CHECKING, Any

from infotorch.rl.collect import Collector, Episode, make_envs, play
from infotorch.rl.heads import PlanesBody, QNetwork, ScalarHead, value_head
from infotorch.rl.replay import ReplayBuffer, SumTree, Transitions
from infotorch.rl.td import Temporal, bootstrap, cql_penalty, temporal_difference

if TYPE_CHECKING:
    from infotorch.rl.dqn import CategoricalDQN
    from infotorch.rl.learner import QLearner
    from infotorch.rl.offline import OfflineDQN

__all__ = [
    "CategoricalDQN",
    "Collector",
    "Episode",
    "OfflineDQN",
    "PlanesBody",
    "QLearner",
    "QNetwork",
    "ReplayBuffer",
    "ScalarHead",
    "SumTree",
    "Temporal",
    "Transitions",
    "bootstrap",
    "cql_penalty",
    "make_envs",
    "play",
    "temporal_difference",
    "value_head",
]

_LIGHTNING = {"CategoricalDQN": "dqn", "OfflineDQN": "offline", "QLearner": "learner"}


def __getattr__(name: str) -> Any:
    if name in _LIGHTNING:
        from importlib import import_module

        return getattr(import_module(f"infotorch.rl.{_LIGHTNING[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
