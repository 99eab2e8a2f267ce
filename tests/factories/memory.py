"""Peak memory of tensors, as torch's profiler sees it."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes of tensors that `work` holds at once, beyond those that were there before it.

    The profiler keeps the sizes of blocks that an earlier profile saw, also when they are given back outside of one: a
    block from before `work`, at such a place, would be given back with the size of another. So those do not count.
    """
    cpu = torch.profiler.ProfilerActivity.CPU
    gc.collect()
    gc.disable()  # or cycles of `work`, and of tests before it, were given back at a moment of the collector's choice
    try:
        with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
            work()
    finally:
        gc.enable()
    events = list(profile.profiler.kineto_results.experimental_event_tree())
    for event in events:  # grows meanwhile: all of the tree
        events += event.children
    blocks = [event for event in events if event.tag == torch._C._profiler._EventType.Allocation]
    own: dict[int, int] = {}
    held = most = 0
    for event in sorted(blocks, key=lambda event: event.start_time_ns):
        block = event.typed[1]
        if block.alloc_size > 0:
            own[block.ptr] = block.alloc_size
            held += block.alloc_size
        else:
            held -= own.pop(block.ptr, 0)
        most = max(most, held)
    return most
