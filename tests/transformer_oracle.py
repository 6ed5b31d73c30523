"""MDTv2 and DiT once more, from shared facts and a public state dict alone: one function, no modules, dense biases."""

import math

import torch
import torch.nn.functional as F


def forward(state, x, t, y, heads, keep=None):
    """Output of an MDTv2 or a DiT whose tensors are `state` (public layout)."""
    w = {k: v.double() for k, v in state.items() if v.is_floating_point()}
    x = x.double()
    width, _, patch, _ = w["x_embedder.proj.weight"].shape
    side = x.shape[-1] // patch
    n = side * side

    frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)  # float32, as the public code has them
    angles = t[:, None].float() * frequencies
    features = torch.cat([angles.cos(), angles.sin()], 1).double()
    c = linear(w, "t_embedder.mlp.2", F.silu(linear(w, "t_embedder.mlp.0", features)))
    c = c + w["y_embedder.embedding_table.weight"][y]

    patches = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=patch)
    embedded = patches.flatten(2).transpose(1, 2) + w["pos_embed"]
    tokens = torch.arange(n).expand(len(x), n) if keep is None else keep

    def block(name, h, which, skip=None):
        if skip is not None:
            h = linear(w, f"{name}.skip_linear", torch.cat([h, skip], -1))
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(w, f"{name}.adaLN_modulation.1", F.silu(c)).chunk(6, 1)
        h = h + gate1[:, None] * attention(name + ".attn", norm(h, shift1, scale1), which)
        hidden = F.gelu(linear(w, f"{name}.mlp.fc1", norm(h, shift2, scale2)), approximate="tanh")
        return h + gate2[:, None] * linear(w, f"{name}.mlp.fc2", hidden)

    def attention(name, h, which):
        b, m, _ = h.shape
        q, k, v = linear(w, f"{name}.qkv", h).view(b, m, 3, heads, width // heads).unbind(2)
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(width // heads)
        table = w.get(f"{name}.rel_pos_bias.relative_position_bias_table")
        if table is not None:
            ys, xs = which // side, which % side
            dy = ys[:, :, None] - ys[:, None, :] + side - 1
            dx = xs[:, :, None] - xs[:, None, :] + side - 1
            scores = scores + table[dy * (2 * side - 1) + dx].permute(0, 3, 1, 2)
        mixed = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).reshape(b, m, width)
        return linear(w, f"{name}.proj", mixed)

    def depth(section):
        return len({k.split(".")[1] for k in w if k.startswith(section)})

    h = embedded.gather(1, tokens[..., None].expand(-1, -1, width))
    for i in range(depth("blocks.")):  # DiT is these blocks alone
        h = block(f"blocks.{i}", h, tokens)
    stack = []
    for i in range(depth("en_inblocks")):
        h = block(f"en_inblocks.{i}", h, tokens)
        stack.append(h)
    for i in range(depth("en_outblocks")):
        h = block(f"en_outblocks.{i}", h, tokens, stack.pop())
    all_tokens = torch.arange(n).expand(len(x), n)
    if keep is None and "decoder_pos_embed" in w:
        h = h + w["decoder_pos_embed"]
    elif keep is not None:
        full = w["mask_token"].expand(len(x), n, width).clone()
        hidden = torch.ones(len(x), n, 1, dtype=torch.bool)
        for i, kept in enumerate(keep):
            full[i, kept] = h[i]
            hidden[i, kept] = False
        full = full + w["decoder_pos_embed"]
        h = torch.where(hidden, block("sideblocks.0", full, all_tokens), full)
    for i in range(depth("de_blocks")):
        h = block(f"de_blocks.{i}", h, all_tokens, embedded)
    shift, scale = linear(w, "final_layer.adaLN_modulation.1", F.silu(c)).chunk(2, 1)
    out = linear(w, "final_layer.linear", norm(h, shift, scale))
    channels = out.shape[-1] // patch**2
    image = torch.zeros(len(x), channels, x.shape[-1], x.shape[-1], dtype=torch.float64)
    for token in range(n):
        top, left = token // side * patch, token % side * patch
        image[:, :, top : top + patch, left : left + patch] = (
            out[:, token].view(-1, patch, patch, channels).permute(0, 3, 1, 2)
        )
    return image


def linear(w, name, x):
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def norm(x, shift, scale):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale[:, None]) + shift[:, None]
