"""Processes that train together: several of this machine, started by `fit`, or on several machines, by `torchrun`.

Each does the same work on its share of a step's examples; the leader alone writes and speaks.
"""

import os
from typing import NamedTuple

from torch import distributed


class Launched(NamedTuple):
    """What `torchrun` started: so many processes on each of so many machines."""

    processes: int
    machines: int


def launched() -> Launched | None:
    """By the variables that `torchrun` gives each process; None where nobody did."""
    if not distributed.is_torchelastic_launched():
        return None
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return Launched(here, int(os.environ["WORLD_SIZE"]) // here)


def rank_and_size() -> tuple[int, int]:
    """This process's place among those that train together, and how many they are."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def leads() -> bool:
    """Whether this is the process that writes what came of it: the only one, or the first."""
    return rank_and_size()[0] == 0


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if distributed.is_initialized():
        distributed.barrier()
