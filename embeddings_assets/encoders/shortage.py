"""What torch and its libraries raise when memory is short or a device fails."""

import contextlib
import re
from collections.abc import Iterator

from embeddings_assets.errors import DeviceError

# Only torch's own allocator on GPUs has an exception class of its own. All else says it in words (patterns).
_MEMORY_IS_SHORT = (
    "DefaultCPUAllocator",  # torch on CPUs
    "bad_alloc",  # C++ on CPUs
    "could not create a memory object",  # oneDNN
    # oneDNN, where there is no room for the code that it compiles; of a primitive descriptor it says so
    # where it cannot compute something at all.
    "could not create a primitive(?! descriptor)",
    "out of memory",  # CUDA: "CUDA error: out of memory" for pinned memory and kernels; cuDNN attention
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",  # cuDNN 8
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",  # cuDNN 9
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)


@contextlib.contextmanager
def device_errors() -> Iterator[None]:
    """Translate what torch and its libraries raise.

    Raises:
        MemoryError: memory is short.
        DeviceError: the GPU failed.
    """
    import torch

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or any(
            re.search(words, str(error)) for words in _MEMORY_IS_SHORT
        ):
            torch.cuda.empty_cache()
            raise MemoryError(str(error)) from error
        if isinstance(error, torch.AcceleratorError):
            reason = str(error).split("\n", 1)[0]
            raise DeviceError(
                f"The GPU failed ({reason}).",
                remedy="look at nvidia-smi and at whether this torch is built for the GPU; then run the same "
                "command again, or use --device cpu",
            ) from error
        raise
