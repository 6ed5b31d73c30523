"""Base of MDT and DiT: patches in, blocks conditioned by adaLN-Zero, patches out (arXiv 2212.09748)."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from timm.layers import PatchEmbed
from torch import Tensor, nn

from dit_shd.attention.bias import Bias
from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.projection import matrix
from dit_shd.attention.recording.recorder import Recorder
from dit_shd.attention.streamed import attend, in_graph
from dit_shd.core.errors import UserError
from dit_shd.models import public_checkpoints
from dit_shd.models.layers import FeedForward, FinalLayer, LabelEmbedder, TimestepEmbedder, modulate
from dit_shd.models.quantization import dequantised

MOST_LAYERS, MOST_WIDTH, MOST_TOKENS = 1024, 2**16, 2**17
"""Limits beyond any such model: a damaged config.json is refused before the model is built."""

Function = TypeVar("Function", bound=Callable[..., Any])
Held = list[tuple[Tensor, Tensor, Tensor, Tensor]]
"""Query, key, value and A V [b,h,n,d] of attention in compiled code, which can make no Capture of them."""


def _outside(function: Function) -> Function:
    """A function that torch.compile leaves as it is, and that breaks its graph."""
    return torch.compiler.disable(function)  # type: ignore[return-value]


class Attention(nn.Module):
    """Multi-head self-attention; calls `recorder` with its Capture, if there is one."""

    recorder: Recorder | None = None

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def bias(self, code: Tensor | None) -> Bias | None:
        """The bias of the scores; `code` [b,n] has the positions of the tokens, None for all tokens."""
        return None

    def forward(self, x: Tensor, code: Tensor | None, held: Held | None = None) -> Tensor:
        """Tokens [b,n,e] from tokens; `code` as in `bias`. `held` takes what otherwise goes to the recorder."""
        b, n, e = x.shape
        query, key, value = (y.view(b, n, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        bias = self.bias(code)
        scale = query.shape[-1] ** -0.5
        whole = torch.compiler.is_compiling() and not in_graph(query, key, value, bias)
        mixed = (_attend_eagerly if whole else attend)(query, key, value, scale, bias)
        if held is not None:
            held.append((query, key, value, mixed))
        elif self.recorder is not None:
            self.record(query, key, value, mixed, code)
        return self.proj(mixed.transpose(1, 2).reshape(b, n, e))

    @_outside
    def record(self, query: Tensor, key: Tensor, value: Tensor, mixed: Tensor, code: Tensor | None) -> None:
        """Call the recorder, if there is one, with the Capture of what `forward` has worked with."""
        if self.recorder is not None:
            scale, out = query.shape[-1] ** -0.5, self._weights_by_head(mixed)
            self.recorder(Capture(query, key, value, scale, self.bias(code), out=out, mixed=mixed))

    def _weights_by_head(self, mixed: Tensor) -> Any:  # noqa: ANN401 (a tensor, or a WeightSource)
        """W^O [h,d,e]: of a plain map its weights, of one with adapters what it makes of unit rows."""
        if type(self.proj) is nn.Linear:
            return dequantised(self.proj.weight).t().unflatten(0, (self.heads, -1))

        def read() -> Tensor:
            rows = mixed.detach().transpose(1, 2).flatten(2)
            return matrix(self.proj, rows, "last", 0, rows.shape[-1])[0].unflatten(0, (self.heads, -1))

        return read if torch.is_grad_enabled() else read()  # nobody reads the student's


_attend_eagerly = _outside(attend)
"""Tiles of a learnable bias break the graph; torch.compile compiles the rest."""


class Block(nn.Module):
    """A transformer block conditioned by adaLN-Zero."""

    compiler: str | Callable[..., Any] | None = None
    """The backend of torch.compile for `transform`; None: it is not compiled."""

    def __init__(self, width: int, attention: Attention, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = FeedForward(width, mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor, code: Tensor | None = None) -> Tensor:
        """Tokens [b,n,e] from tokens, the condition [b,e] and codes of the tokens [b,n]."""
        if self.compiler is None or torch.compiler.is_compiling():
            return self.transform(x, condition, code)
        _mark(x, code)
        held: Held = []  # always, so that a block has one graph, recorded or not, and recomputed in the backward
        x = _compiled(self.compiler)(self, x, condition, code, held)
        self.attn.record(*held[0], code)
        return x

    def transform(self, x: Tensor, condition: Tensor, code: Tensor | None, held: Held | None = None) -> Tensor:
        """What is compiled of `forward`: the same code in every block of every model."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        x = torch.addcmul(x, gate_a, self.attn(modulate(self.norm1(x), shift_a, scale_a), code, held))
        return torch.addcmul(x, gate_m, self.mlp(modulate(self.norm2(x), shift_m, scale_m)))


@functools.cache
def _compiled(backend: str | Callable[..., Any]) -> Callable[..., Tensor]:
    return torch.compile(Block.transform, backend=backend)


def _mark(x: Tensor, code: Tensor | None) -> None:
    """One graph for the number n of all tokens, and one for any number of some of them."""
    if code is None:
        torch._dynamo.mark_static(x, [1, 2])
    else:
        torch._dynamo.maybe_mark_dynamic(x, 1)
        torch._dynamo.maybe_mark_dynamic(code, 1)


class LatentTransformer(ModelMixin, ConfigMixin):
    """A class-conditional transformer of square latents; a family adds position embeddings and blocks.

    Parameters have the names of the public checkpoints, which are read and written with few changes.
    """

    _supports_gradient_checkpointing = True
    SIZES: ClassVar[Mapping[str, dict[str, int]]]
    """Arguments of the class by the name of a size, such as S/2."""
    pos_embed: nn.Parameter
    final_layer: FinalLayer

    def embedders(self, sample_size: int, patch_size: int, in_channels: int, width: int, num_classes: int) -> None:
        """Construct the modules that embed latents, timesteps and labels."""
        self.x_embedder = PatchEmbed(sample_size, patch_size, in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(num_classes, width)
        self.gradient_checkpointing = False

    @classmethod
    def from_options(cls, size: str | None = None, **options: Any) -> Self:
        """Construct a model by the name of a size.

        Args:
            size: S/2, B/2, L/2, XL/2 and the like, as published; other keys override what it stands for.
            options: Arguments of the class.

        Raises:
            UserError: There is no such size.
        """
        if size is not None and size not in cls.SIZES:
            raise UserError(f"{cls.__name__}: no size '{size}'. Sizes: {', '.join(cls.SIZES)}")
        return cls(**{**cls.SIZES.get(size or "", {}), **options})

    @classmethod
    def public_config(cls, state: Mapping[str, Tensor], heads: int | None = None) -> dict[str, Any]:
        """Arguments of the class for a public state dict, and the number of heads where tensors do not determine it."""
        raise NotImplementedError

    @classmethod
    def is_public(cls, state: Mapping[str, Tensor]) -> bool:
        """Whether a state dict is a public one of this family, by the names of its tensors."""
        raise NotImplementedError

    @classmethod
    def from_public(cls, state: Mapping[str, Tensor], heads: int | None = None) -> Self:
        """A model from a public state dict, with sizes from the shapes of the tensors.

        Args:
            state: The tensors by name.
            heads: The number of heads, for a family whose tensors do not determine it (DiT).

        Raises:
            UserError: The tensors are not those of such a model.
        """
        state = cls.parameters_of(public_checkpoints.clean(state))
        config = cls.public_config(state, heads)
        with torch.device("meta"):  # a misfit is reported before memory is allocated
            public_checkpoints.check_fits(cls(**config), state)
        model = cls(**config)
        model.load_state_dict(state)
        return model

    @classmethod
    def parameters_of(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A public state dict without its index buffers."""
        return state

    def to_public(self) -> dict[str, Tensor]:
        """The state dict of the public layout."""
        return dict(self.state_dict())

    @property
    def tokens(self) -> int:
        """n, the number of tokens of an unmasked pass."""
        return self.pos_embed.shape[1]

    def initialise(self) -> None:
        """Initialise the weights: linear maps by Xavier, embedders by N(0, 0.02), adaLN-Zero and last layer by 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        projection = self.x_embedder.proj
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
        first, _, second = self.t_embedder.mlp
        for weight in (self.y_embedder.embedding_table.weight, first.weight, second.weight):
            nn.init.normal_(weight, std=0.02)  # type: ignore[arg-type]
        zeroed = [m.adaLN_modulation[-1] for m in self.modules() if isinstance(m, (Block, FinalLayer))]
        for linear in [*zeroed, self.final_layer.linear]:
            nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]

    def embed(self, latents: Tensor, timestep: Tensor | float, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [b,n,e] with their position embedding, and the condition [b,e] of every block.

        Args:
            latents: Noisy latents [b,c,y,x].
            timestep: [b], or one number.
            labels: [b].
        """
        timestep = torch.as_tensor(timestep, device=latents.device).expand(latents.shape[0])
        condition = self.t_embedder(timestep) + self.y_embedder.embedding_table(labels)
        tokens = self.x_embedder(latents) + self.pos_embed
        return tokens.contiguous(), condition  # the layout of every later block, so that one compilation serves all

    def run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        """A block's output; with gradient checkpointing it is recomputed in the backward."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *inputs)  # type: ignore[misc]
        return block(*inputs)

    def result(self, x: Tensor, condition: Tensor, return_dict: bool) -> Transformer2DModelOutput | tuple[Tensor]:
        """Apply the final layer and assemble its patches: sample [b, c or 2c, y, x]."""
        patches = self.final_layer(x, condition)
        b, n, _ = patches.shape
        w, p = math.isqrt(n), self.config.patch_size  # type: ignore[attr-defined]
        channels = patches.shape[2] // p**2
        grid = patches.view(b, w, w, p, p, channels)
        sample = grid.permute(0, 5, 1, 3, 2, 4).reshape(b, channels, w * p, w * p)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    @classmethod
    def check_names(cls, names: Sequence[object] | None, classes: int) -> None:
        """Refuse class names that are not text or not one for each class.

        Raises:
            UserError: Naming the class of the model.
        """
        if names is None:
            return
        if not isinstance(names, (list, tuple)) or not all(name is None or isinstance(name, str) for name in names):
            raise UserError(f"{cls.__name__}: class_names: wanted a list of texts (or none), found {str(names)[:60]}")
        if len(names) != classes:
            raise UserError(f"{cls.__name__}: class_names: wanted {classes}, one for each class, found {len(names)}")

    @classmethod
    def check_shape(
        cls, sample_size: int, patch_size: int, num_layers: int, heads: int, width: int, mlp_ratio: float
    ) -> None:
        """Refuse sizes that no such model has.

        Raises:
            UserError: Naming the class of the model and the sizes.
        """
        name = cls.__name__
        if min(sample_size, patch_size, num_layers, heads, width) < 1 or mlp_ratio * width < 1:
            raise UserError(
                f"{name}: wanted sizes of 1 or more, found sample_size {sample_size}, patch_size {patch_size}, "
                f"num_layers {num_layers}, heads {heads}, width {width}, mlp_ratio {mlp_ratio}"
            )
        if num_layers > MOST_LAYERS or width > MOST_WIDTH or (sample_size // patch_size) ** 2 > MOST_TOKENS:
            raise UserError(
                f"{name}: wanted at most {MOST_LAYERS:,} layers of width {MOST_WIDTH:,} and {MOST_TOKENS:,} tokens, "
                f"found {num_layers:,} layers of width {width:,} and {(sample_size // patch_size) ** 2:,} tokens"
            )
        if sample_size % patch_size:
            raise UserError(f"{name}: sample_size {sample_size} is not a multiple of patch_size {patch_size}")
        if width % 4:
            raise UserError(f"{name}: the width (heads x head width) must be a multiple of 4, found {width}")
