"""Repeated work: as often as there are pauses, only after transient errors, and ended by the caller."""

import itertools

import pytest

from sage_scale.errors import StorageError
from sage_scale.retry import backoff, retry
from sage_scale.storage import Unavailable


def failing(times, error):
    """Work that fails so often, then gives the number of calls."""
    calls = itertools.count(1)

    def work():
        number = next(calls)
        if number <= times:
            raise error
        return number

    return work


def test_work_is_repeated_after_each_pause_and_its_last_error_is_raised():
    slept, failures = [], []
    assert (
        retry(
            failing(2, Unavailable("x")),
            Unavailable,
            [1, 2, 4],
            on_failure=failures.append,
            sleep=slept.append,
        )
        == 3
    )
    assert slept == [1, 2] and len(failures) == 2
    with pytest.raises(Unavailable):
        retry(failing(4, Unavailable("x")), Unavailable, [0, 0, 0], sleep=slept.append)
    with pytest.raises(StorageError, match="for good"):  # not transient
        retry(failing(1, StorageError("for good")), Unavailable, [0], sleep=slept.append)


def test_a_caller_ends_the_attempts_by_an_error_of_its_own():
    def give_up(error):
        raise StorageError("given up") from None

    with pytest.raises(StorageError, match="given up"):
        retry(failing(9, Unavailable("x")), Unavailable, backoff(0.1, 1.0), on_failure=give_up)


def test_pauses_double_up_to_the_longest_with_jitter():
    pauses = list(itertools.islice(backoff(0.1, 1.0), 8))
    assert all(0.5 * full <= pause <= full for pause, full in zip(pauses, [0.1, 0.2, 0.4, 0.8, 1, 1, 1, 1]))
