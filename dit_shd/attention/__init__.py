"""What softmax attention did: captures, and attention whose bias is streamed.

Alphabet (everywhere in dit_shd): b batch, h teacher heads, g student heads, n query tokens, m key tokens, d width of
one head, e model width, l layers, r rows of one tile, k heads of one group.
"""

from dit_shd.attention.bias import Bias, DenseBias
from dit_shd.attention.capture import Capture, Captures
from dit_shd.attention.recording.attach import attach_processors, capture
from dit_shd.attention.recording.processors import SHDAttnProcessor
from dit_shd.attention.relative_bias import RelativeBias
from dit_shd.attention.streamed import attend

__all__ = [
    "Bias",
    "Capture",
    "Captures",
    "DenseBias",
    "RelativeBias",
    "SHDAttnProcessor",
    "attach_processors",
    "attend",
    "capture",
]
