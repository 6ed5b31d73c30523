"""What opens nn.MultiheadAttention is of one thread."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch.nn import functional as F

from dit_shd.attention.recording.sdpa_calls import MultiHead, Opened


class Special(torch.Tensor):
    """Whose functions are its own."""


def test_multi_head_attention_is_opened_in_one_thread_alone_and_closed_by_the_last():
    plain, special = F.has_torch_function, (torch.ones(1).as_subclass(Special),)
    first, second = (Opened(MultiHead([], 1, 0.0)) for _ in range(2))
    with ThreadPoolExecutor(1) as other:
        first.__enter__()
        assert not F.has_torch_function(special)
        assert other.submit(F.has_torch_function, special).result()
        other.submit(second.__enter__).result()
        first.__exit__(None, None, None)
        assert F.has_torch_function(special)
        assert not other.submit(F.has_torch_function, special).result()
        other.submit(second.__exit__, None, None, None).result()
    assert F.has_torch_function is plain
