"""Tensors at the edge of memory that nobody may touch, and processes of their own for what that kills."""

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Guarded(TorchDispatchMode):
    """New tensors stand at the edge of a page that nobody may touch: before it, or behind it."""

    FACTORIES = ("aten::new_empty", "aten::new_zeros", "aten::empty_like", "aten::zeros_like", "aten::clone")

    def __init__(self, before):
        super().__init__()
        self.before, self.pages = before, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        return self.moved(made) if function._schema.name in self.FACTORIES else made

    def moved(self, x):
        """The same numbers there."""
        if not x.numel():
            return x
        page, size = mmap.PAGESIZE, x.numel() * x.element_size()
        room = -(-size // page) * page
        memory = mmap.mmap(-1, room + 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for wall in (start, start + page + room):
            assert libc.mprotect(ctypes.c_void_p(wall), page, 0) == 0  # PROT_NONE
        offset = page if self.before else page + room - size
        flat = torch.frombuffer(memory, dtype=torch.uint8, offset=offset, count=size)
        self.pages.append(memory)
        return flat.view(x.dtype).view(x.shape).copy_(x)


def in_a_process_of_its_own(file, code):
    """Code with the names of a test's file and of this one, where a crash is nobody else's."""
    folders = [str(Path(file).parent), str(Path(__file__).parent)]
    names = f"from guarded_memory import *; from {Path(file).stem} import *"
    program = f"import sys; sys.path[:0] = {folders}; {names}; {code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
