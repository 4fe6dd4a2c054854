"""How many threads torch uses while ours work: its own would change the last bits of matrix methods."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Each of our threads works on one tensor, with one thread of torch; see :func:`take_thread_count`."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def take_thread_count() -> None:
    """Let a thread of ours take over how many threads torch may use; new ones call it before they compute.

    Until a thread asks for the number, LAPACK uses a thread for each processor in it (torch 2.13 with MKL), so the last
    bits would depend on the machine.
    """
    import torch

    torch.get_num_threads()
