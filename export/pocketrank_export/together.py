"""Processes that train together: several of one machine, which `rounds` starts, or on several, which `torchrun` starts.

Each does the same work on its share of a step's examples. What is looked for or written on the disk is the first one's
to do, so that no other acts on an older view of it, and all of them go on, or fail, alike.
"""

import atexit
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import distributed

from pocketrank.errors import NotReady

T = TypeVar("T")


class Launched(NamedTuple):
    """What `torchrun` started: so many processes on this machine, on so many machines."""

    processes: int
    machines: int


def launched() -> Launched | None:
    """By the variables that `torchrun` gives each process; None of processes that did not `meet`."""
    if not (distributed.is_torchelastic_launched() and distributed.is_initialized()):
        return None
    return Launched(int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"]))


def meet(folder: Path) -> None:
    """Join the other processes that `torchrun` started, if it did.

    Args:
        folder: must be one that all of them see.

    Raises:
        NotReady: one does not see what the first one writes there.
    """
    if not distributed.is_torchelastic_launched():
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if has_gpu else "gloo")
        atexit.register(distributed.destroy_process_group)
    mark = folder / f"together-{led(lambda: uuid.uuid4().hex)}"
    led(mark.touch)
    seen: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(seen, mark.is_file())
    led(mark.unlink)
    if not all(seen):
        raise NotReady(
            f"{folder.absolute()}: not every machine sees what the first one writes there; put the project on a disk "
            "that all of them share, and start them in it again"
        )


def rank_and_size() -> tuple[int, int]:
    """This process's place among those that train together, and how many they are."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def leads() -> bool:
    """Whether this is the process that says what came of it: the only one, or the first."""
    return rank_and_size()[0] == 0


def led(work: Callable[[], T]) -> T:
    """What some work of the first process gives, in all of them; the error, where it fails."""
    if rank_and_size()[1] == 1:
        return work()
    outcome: list[Any] = [None, None]
    if leads():
        try:
            outcome[0] = work()
        except Exception as failure:
            outcome[1] = failure  # whichever: the others wait
    distributed.broadcast_object_list(outcome)
    found, error = outcome
    if error is not None:
        raise error
    return cast("T", found)
