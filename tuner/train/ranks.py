"""The ranks of a run: how they meet, what the main rank finds out for all of them, and how the others learn that one is lost.

It refuses on every rank what any of them refuses, so that none waits for one that has left.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from tuner.base import pick_device
from tuner.errors import Exit, Refusal
from tuner.train.stopping import Heartbeat

T = TypeVar("T")
MEET_WITHIN = timedelta(days=1)  # ranks wait so long for the main one to read and check the data; a rank that hangs is found by its heartbeat

logger = logging.getLogger("tuner")


def world_size() -> int:
    """Ranks of this run, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Is this the rank that reads the data, prints and writes?"""
    return rank() == 0


def will_shard() -> bool:
    """Will FSDP cut the base into parts, as accelerate's configuration says? Never on CPUs: there accelerate 1.15 leaves every rank a whole copy."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and pick_device() != "cpu"


def meet() -> None:
    """Start the process group through accelerate, as the trainer would: gloo on CPUs, nccl on GPUs. Nothing for a single rank."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState(cpu=pick_device() == "cpu", timeout=MEET_WITHIN)


def part() -> None:
    """End the process group: what follows is the main rank's alone, and no other waits for it."""
    if world_size() > 1:
        import torch.distributed as group

        if group.is_initialized():
            group.destroy_process_group()


def from_main(make: Callable[[], T]) -> T:
    """What `make` gives on the main rank, on every rank. Raises the main rank's Refusal everywhere; the value must survive pickling.

    The main rank meets the others after `make`, which may therefore still fork. Whatever else ends `make` ends the other ranks too.
    """
    if world_size() == 1:
        return make()
    told: list[object] = [None]
    try:
        if is_main():
            told = [(make(),)]
    except Refusal as refusal:
        told = [refusal]
    finally:
        meet()
        import torch.distributed as group

        group.broadcast_object_list(told, src=0)
    return cast(T, _unpacked(told[0]))


def from_each(make: Callable[[], T]) -> T:
    """What `make` gives on each rank, for itself. Raises the first rank's Refusal on every rank, whichever of them refused."""
    if world_size() == 1:
        return make()
    made: object = None
    told: list[object] = [None] * world_size()
    try:
        made = (make(),)
    except Refusal as refusal:
        made = refusal
    finally:
        meet()
        import torch.distributed as group

        group.all_gather_object(told, () if isinstance(made, tuple) else made)
    for other in told:
        _unpacked(other)
    return cast(T, _unpacked(made))


def _unpacked(told: object) -> Any:
    """The value that a rank told, or its end. A rank that told nothing has failed, and says so itself."""
    if isinstance(told, Refusal):
        raise told
    if not isinstance(told, tuple):
        raise SystemExit(Exit.BUG)
    return told[0] if told else None


@contextmanager
def watched(folder: Path, hang_seconds: float, say: Callable[[str], None]) -> Iterator[Heartbeat | None]:
    """While open, a rank that hangs or is gone ends the run, named with its last step. None for a single rank.

    A collective whose other rank has died raises a RuntimeError here before anybody could say why: it is held back until the
    heartbeat knows. `say` is used on the main rank; should that be the one that is lost, another logs it.
    """
    if world_size() == 1:
        yield None
        return
    heart = Heartbeat(folder, rank(), world_size(), hang_seconds, say if is_main() else logger.error)
    with heart:
        try:
            yield heart
        except RuntimeError:
            time.sleep(4 * heart.poll_seconds + 1)  # if a rank is gone, this process ends here
            raise
