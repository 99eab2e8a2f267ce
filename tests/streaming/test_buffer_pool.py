"""Memory that is used again is never used twice at once."""

from __future__ import annotations

import random
import threading

import numpy as np
import torch

from sage_scale.streaming.buffers import LEAST_BYTES, BufferPool


def test_a_room_is_used_again_once_nobody_holds_it():
    pool = BufferPool()
    first = pool.take(LEAST_BYTES)
    address = first.ctypes.data
    view = memoryview(first)[10:20]
    del first
    assert pool.take(LEAST_BYTES).ctypes.data != address  # a view holds it
    tensor = torch.from_numpy(np.asarray(view))
    del view
    assert pool.take(LEAST_BYTES).ctypes.data != address  # a tensor holds it
    del tensor
    assert pool.take(LEAST_BYTES).ctypes.data == address


def test_no_more_than_asked_for_is_kept_free():
    pool = BufferPool(spare=4 * LEAST_BYTES)
    held = [pool.take(LEAST_BYTES) for _ in range(32)]
    del held
    pool.take(LEAST_BYTES)
    assert sum(buffer.size for buffer in pool._buffers) <= 5 * LEAST_BYTES


def test_what_is_held_keeps_its_bytes_whatever_else_is_taken():
    pool, wrong = BufferPool(spare=8 * LEAST_BYTES), []

    def work(seed: int) -> None:
        draw, held = random.Random(seed), {}
        for number in range(150):
            buffer = pool.take(draw.randint(LEAST_BYTES, 4 * LEAST_BYTES))
            value = draw.randint(0, 255)
            buffer[:] = value
            held[number] = (buffer[1000 : LEAST_BYTES - 1000].data, value)
            del buffer
            while len(held) > 6:
                view, value = held.pop(draw.choice(list(held)))
                if not (np.asarray(view) == value).all():
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
