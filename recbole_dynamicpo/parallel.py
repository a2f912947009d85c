"""Several processes of one run: who this one is among them, and the few things that they say to one another.

They are started by torchrun, and nothing here knows a model: gradients, scores and flags are exchanged by who
has them. Without torchrun there is one process, for which each exchange is what it has itself.
"""

from __future__ import annotations

import heapq
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import PeerError, SettingsError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

K = TypeVar("K")
T = TypeVar("T")

# Seconds that a process waits for the others; a message of a library's own default is as long.
TIMEOUT_VARIABLE, TIMEOUT = "RECBOLE_DYNAMICPO_TIMEOUT", 1800.0
# Which devices this process was begun with: RecBole's configuration leaves the first one alone of them, and
# processes that are started later are to see all.
_DEVICES = "CUDA_VISIBLE_DEVICES"
_visible = os.environ.get(_DEVICES)


class Processes:
    """This process among those of a run.

    Attributes:
        rank: of this process, from 0 on.
        world: how many there are.
    """

    rank, world = 0, 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.world == 1

    def add(self, values: Tensor) -> None:
        """Replace values by their sum over all processes, the same bits in each."""

    def gather(self, value: T) -> list[T]:
        """Return what each process has, by rank."""
        return [value]

    def decide(self, make: Callable[[], T]) -> T:
        """Return what the first process makes; no other makes it."""
        return make()

    def wait(self) -> None:
        """Return when all processes are here."""

    def agree(self, flag: bool) -> bool:
        """Say whether any process says so."""
        return any(self.gather(flag))

    def claim(self) -> bool:
        """Say whether this process is the first that fails, whose error is to be shown."""
        return True

    def has_turn(self, number: int) -> bool:
        """Say whether the ``number``-th of some parts, which the processes take turns at, is this one's."""
        return number % self.world == self.rank

    def merge(self, found: Mapping[K, T]) -> dict[K, T]:
        """Return what all processes found together, each under keys of its own."""
        return {key: value for part in self.gather(found) for key, value in part.items()}

    def deal(self, sizes: Sequence[int]) -> list[int]:
        """Return the indices of this process's share of some rows, in order; see ``deal``."""
        return deal(sizes, self.world)[self.rank]


class _Group(Processes):
    """One of several processes, joined by ``torch.distributed``."""

    def __init__(self, store: Any, rank: int, world: int) -> None:
        from torch import distributed

        self.rank, self.world = rank, world
        self._store, self._torch = store, distributed

    def add(self, values: Tensor) -> None:
        self._named(self._torch.all_reduce, values)

    def gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.world
        self._named(self._torch.all_gather_object, found, value)
        return found

    def decide(self, make: Callable[[], T]) -> T:
        said = [make() if self.first else None]
        self._named(self._torch.broadcast_object_list, said, 0)
        return said[0]  # type: ignore[return-value]

    def wait(self) -> None:
        self.gather(None)  # a barrier of the backend's own may pass on one side when another dies

    def claim(self) -> bool:
        with suppress(RuntimeError):  # torchrun, which keeps the store, is gone
            return _claim(self._store)
        return True

    def _named(self, act: Callable[..., Any], *args: Any) -> None:
        try:
            act(*args)
        except RuntimeError as error:
            logger.debug("%s", error)  # where in a library the silence was met, which helps nobody
            raise PeerError(
                f"another of the {self.world} processes of this run ended or does not answer"
            ) from error


def deal(sizes: Sequence[int], world: int) -> list[list[int]]:
    """Return each process's rows, in order: the largest first, each to whoever has the least so far.

    Args:
        sizes: (n,) of the rows, any measure of the work that they are.
        world: processes.
    """
    shares: list[list[int]] = [[] for _ in range(world)]
    load = [(0, process) for process in range(world)]
    for row in sorted(range(len(sizes)), key=lambda row: (-sizes[row], row)):
        work, process = heapq.heappop(load)
        shares[process].append(row)
        heapq.heappush(load, (work + sizes[row], process))
    return [sorted(share) for share in shares]


_here = Processes()
_joined = False  # whether this process has ever met the others


def here() -> Processes:
    """Return this process among those of its run; it is alone unless it has joined them."""
    return _here


def join() -> Processes:
    """Join the processes that torchrun started, if this is one of several, and return it among them.

    Raises:
        SettingsError: the environment's time limit is no number.
        PeerError: the others cannot be reached.
    """
    global _here, _joined
    if not _here.alone or not is_one_of_several():
        return _here
    import torch

    limit = timedelta(seconds=_seconds())
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank())
    try:
        store, rank, world = _meet(limit)
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            # The store outlives processes that are started again, and with it where the first ones listened.
            store=torch.distributed.PrefixStore(f"recbole_dynamicpo/{restarts()}", store),
            rank=rank,
            world_size=world,
            timeout=limit,
        )
    except (RuntimeError, ValueError) as error:
        raise PeerError(f"cannot join the other processes of this run ({_reason(error)})") from error
    _here, _joined = _Group(store, rank, world), True
    if rank:
        logging.disable(logging.WARNING)  # the first one says it for all
    return _here


def _reason(error: Exception) -> str:
    """Return what an error of torch's says, without the places in torch that it went through."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _meet(limit: timedelta) -> tuple[Any, int, int]:
    """Return the store that torchrun keeps for the processes, the rank of this one and how many there are."""
    from torch import distributed

    store, rank, world = next(distributed.rendezvous("env://", timeout=limit))
    return store, rank, world


def _claim(store: Any) -> bool:
    return bool(store.add(f"recbole_dynamicpo/failed/{restarts()}", 1) == 1)


def leave() -> None:
    """Be alone again; whoever waits for this process hears that it is gone."""
    global _here
    if not _here.alone:
        from torch import distributed

        logging.disable(logging.NOTSET)
        with suppress(RuntimeError):  # of those that are gone
            distributed.destroy_process_group()
    _here = Processes()


def is_one_of_several() -> bool:
    """Say whether torchrun started this process beside others, joined or not."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ


def waits_for_others() -> bool:
    """Say whether torchrun started this process beside others that it has not joined yet."""
    return not _joined and is_one_of_several()


def may_show() -> bool:
    """Say whether an error is to be shown here: by the first process that fails, or by the only one."""
    if _here.alone and is_one_of_several():  # before they have met, all fail alike
        with suppress(RuntimeError, ValueError):
            return _claim(_meet(timedelta(seconds=60))[0])
    return _here.claim()


def local_rank() -> int:
    """Return the number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def restarts() -> int:
    """Return how often torchrun has started the processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def torchrun(
    arguments: Sequence[str],
    nproc: int,
    *,
    machines: int = 1,
    machine: int = 0,
    address: str = "localhost",
    port: str = "0",
) -> list[str]:
    """Return the command that runs our command line in several processes by torchrun.

    Args:
        arguments: of our command line.
        nproc: processes on this machine.
        machines: how many take part.
        machine: the number of this one.
        address, port: where those of several machines meet: the first one.
    """
    place = ["--standalone", "--local-addr=127.0.0.1"]
    if machines > 1:
        place = [f"--nnodes={machines}", f"--node-rank={machine}"]
        place += [f"--master-addr={address}", f"--master-port={port}"]
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={nproc}", *place]
    return [*run, "-m", f"{__package__}.cli", *arguments]


def environment_of(nproc: int, machines: int = 1) -> dict[str, str]:
    """Return the environment of such a command: threads shared out, and no network where none is needed."""
    threads = max(1, (os.cpu_count() or 1) // nproc)
    more = {"OMP_NUM_THREADS": str(threads)}
    if machines == 1 and sys.platform == "linux":
        more["GLOO_SOCKET_IFNAME"] = "lo"
    found = {**more, **os.environ}
    found.pop(_DEVICES, None)
    return found if _visible is None else {**found, _DEVICES: _visible}


def _seconds() -> float:
    given = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:
        raise SettingsError(f"environment {TIMEOUT_VARIABLE}: got {given!r}, wanted a number of seconds")
    return seconds
