"""The processes of one launched run (`torchrun`, `accelerate launch`); a process that was not launched is alone.

A lone process imports no torch here: a finished run is seen at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from utils.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_TERMINATED, InputError, Terminated

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
_TIMEOUT = timedelta(days=1)  # the others wait while the main process decodes a whole data set
_EXIT_CODES = {Terminated: EXIT_TERMINATED, KeyboardInterrupt: EXIT_INTERRUPTED}
_LOST_PEER = "gloo/transport"  # in the RuntimeError of every exchange with a process that is gone


@dataclass(frozen=True)
class Ranks:
    """This process among all of a run; the first one, `is_main`, is the only one that writes.

    Attributes:
        rank: from 0.
        num_ranks: 1 where nothing was launched; all methods then do nothing.
        is_beside_main: whether this is another process on the main one's machine, which finds there the very files
            that the main one has looked at.
    """

    rank: int = 0
    num_ranks: int = 1
    is_beside_main: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def on_main(self, function: Callable[[], Result]) -> Result:
        """What the function returns in the main process, in every process; where it fails there, all end.

        Raises:
            whatever the function raises, in the main process; SystemExit with the same exit code in the others.
        """
        if self.num_ranks == 1:
            return function()
        from torch import distributed

        outcome: list[Any] = [0, None]  # exit code, result
        try:
            if self.is_main:
                outcome[1] = function()
        except BaseException as error:
            outcome[0] = _EXIT_CODES.get(type(error), EXIT_BAD_INPUT)
            raise
        finally:
            distributed.broadcast_object_list(outcome, src=0)
        if outcome[0]:
            sys.exit(outcome[0])  # the main process has said why
        return outcome[1]

    def main_first(self, function: Callable[[], Result]) -> Result:
        """Call the function in the main process, then in the others: what it writes is then found.

        Raises:
            as `on_main`.
        """
        results: list[Result] = []
        self.on_main(lambda: results.append(function()))
        return results[0] if self.is_main else function()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes; the tensor itself is not changed."""
        if self.num_ranks == 1:
            return tensor
        from torch import distributed

        total = tensor.detach().to("cpu", copy=True)
        distributed.all_reduce(total)
        return total.to(tensor.device)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.num_ranks == 1:
            return flag
        import torch

        return bool(self.sum(torch.tensor(int(flag))))

    def copy_from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite the tensors with those of the main process."""
        if self.num_ranks == 1:
            return
        from torch import distributed

        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Meet the other processes of a launched run, and leave them at the end.

    Raises:
        InputError: another process has ended before.
    """
    num_ranks = int(os.environ.get("WORLD_SIZE") or 1)
    if num_ranks == 1:
        yield Ranks()
        return
    import torch
    from torch import distributed

    # Both: small messages go over gloo, so that they never wait for a GPU.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    try:
        rank = distributed.get_rank()
        # Launchers number the machines; one that does not say which this is may have several.
        yield Ranks(rank, num_ranks, rank > 0 and os.environ.get("GROUP_RANK") == "0")
    except RuntimeError as error:
        if _LOST_PEER not in str(error):
            raise
        raise InputError(
            "another process of this run has ended, its output says why; launch all of them again to go on from here"
        ) from None
    finally:
        distributed.destroy_process_group()
