"""Memory: giving back what is free, how libraries say that there is none, and what a user can do about it."""

import ctypes
import re

WORDS = re.compile(r"out of memory|can't allocate memory|not enough memory|failed to allocate|bad_alloc", re.IGNORECASE)
TRAINING = (
    "less memory: a smaller micro_batch_size (auto finds the largest that fits), gradient_checkpointing=true, "
    "precision=bf16, teacher_precision=bf16 or sharding=fsdp2; dry_run=true counts what a run takes. What was saved "
    "is kept"
)
OTHERS = "less memory: a smaller batch_size; what is finished is kept"


def give_back() -> None:
    """Give main memory that is free back to the system, where the C library can (glibc).

    It keeps what was freed between blocks in use, so that the resident memory of a long run on a CPU grows though its
    tensors do not.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or of Python says that memory is used up."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and WORDS.search(str(error)) is not None


def memory_line(error: BaseException, training: bool) -> str:
    """What happened and what to do, in one line.

    Args:
        error: An error of which is_out_of_memory is true.
        training: Whether a run was being trained.
    """
    size = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)|you tried to allocate (\d+) bytes", str(error))
    where = "on the GPU" if "CUDA" in str(error) else "in memory"
    wanted = f" for {size[1] or f'{int(size[2]) / 2**30:.1f} GiB'} more" if size else ""
    return f"no room {where}{wanted}; {TRAINING if training else OTHERS}"
