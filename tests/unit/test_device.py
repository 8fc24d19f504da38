"""What an error says of the device."""

from __future__ import annotations

import pytest

from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_worker.device import Poisoned, is_out_of_memory, is_poisoned

CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 1 bytes. Error code 12 (Cannot allocate memory)"
)


class AcceleratorError(RuntimeError):
    """Named as torch's."""


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        AcceleratorError("CUDA error: out of memory"),
        RuntimeError(CPU_ALLOCATOR),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_memory_that_ran_out_is_known_and_breaks_nothing(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_poisoned(error)


@pytest.mark.parametrize(
    "error",
    [
        AcceleratorError("CUDA error: an illegal memory access was encountered"),
        AcceleratorError("something that a later version says"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
        RuntimeError("HIP error: unspecified launch failure"),
        Poisoned("as told before"),
    ],
    ids=str,
)
def test_a_broken_context_is_known(error: Exception) -> None:
    assert is_poisoned(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the prompt says out of memory, CUDA error"),
        ModelUnavailable("CUDA error: no"),
        AcceleratorError("CUDA error: no kernel image is available for execution on the device"),
        AcceleratorError("CUDA error: invalid configuration argument"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ],
    ids=str,
)
def test_other_errors_are_neither(error: Exception) -> None:
    assert not is_out_of_memory(error)
    assert not is_poisoned(error)
