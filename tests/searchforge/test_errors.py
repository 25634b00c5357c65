"""The class of an error, or of one that it was raised from, decides whether another attempt may succeed."""

from __future__ import annotations

import pytest

from searchforge.errors import ConflictError, GateError, JobError, PermanentError, UsageError, may_pass


@pytest.mark.parametrize(
    "error",
    [
        JobError("the bucket is unreachable"),
        OSError("no space left on device"),
        MemoryError(),
        ConnectionResetError(),
        TimeoutError(),
        RuntimeError("a worker was lost"),
    ],
)
def test_storage_network_memory_and_unknown_errors_may_pass(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        TypeError("unsupported operand"),
        KeyError("embedding"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        NotImplementedError(),
        ZeroDivisionError(),
        ModuleNotFoundError("no module named scann"),
        UsageError("the corpus does not exist"),
        GateError("the recall is too low"),
        ConflictError("another run published first"),
        PermanentError("the loss is nan"),
    ],
)
def test_programming_errors_and_bad_input_may_not_pass(error: Exception) -> None:
    assert not may_pass(error)


def test_an_error_that_was_raised_from_a_permanent_one_may_not_pass() -> None:
    with pytest.raises(JobError) as caught:
        try:
            {}["embedding"]
        except KeyError as error:
            raise JobError("the Beam job failed") from error
    assert not may_pass(caught.value)


def test_an_error_of_the_network_may_pass_although_its_class_is_also_a_value_error() -> None:
    class Truncated(OSError, ValueError):
        pass

    assert may_pass(Truncated("the response ended early"))
