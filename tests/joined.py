"""A Lightning environment for processes that already form a group, such as those of `run_in_processes`."""

from __future__ import annotations

import torch
from lightning.fabric.plugins.environments import LightningEnvironment


class Joined(LightningEnvironment):
    """Ranks and sizes are those of the group."""

    creates_processes_externally = True

    def world_size(self):
        return torch.distributed.get_world_size()

    def global_rank(self):
        return torch.distributed.get_rank()

    def local_rank(self):
        return torch.distributed.get_rank()

    def set_world_size(self, size):
        pass

    def set_global_rank(self, rank):
        pass
