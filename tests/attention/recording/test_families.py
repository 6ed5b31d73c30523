"""The same mechanism outside diffusers: timm's DeiT, LLaMA and GPT-2 of transformers, against the oracle."""

import oracle
import pytest
import torch

from dit_shd import SHD, capture
from dit_shd.core.errors import UserError


def oracle_loss(teacher, student):
    """SHD by whole maps: progressive alphas, then the divergence; the student's graph stays."""
    total = torch.zeros((), dtype=torch.float64)
    for t, s in zip(teacher.values(), student.values()):
        plan = groups(t.heads, s.heads)
        a = oracle.maps(t.query, whole(t, t.key), t.scale, causal=t.causal).detach()
        x = oracle.head_outputs(whole(t, t.value), t.out).detach()
        w, _ = oracle.merge_progressively(a, x, plan)
        b = oracle.maps(s.query, whole(s, s.key), s.scale, causal=s.causal)
        total = total + oracle.divergence(a, b, w).mean()
    return 2.0 * total


def whole(capture, shared):
    return shared[:, capture.key_heads(range(capture.heads))]


def groups(h, g):
    """Contiguous runs, the longer ones first (shd.md)."""
    sizes = [h // g + (i < h % g) for i in range(g)]
    starts = [sum(sizes[:i]) for i in range(g)]
    return [list(range(start, start + size)) for start, size in zip(starts, sizes)]


def check(teacher, student, run, heads):
    """Values and gradients of every parameter of the student equal the oracle's."""
    with capture(teacher) as t, capture(student) as s:
        run(teacher)
        run(student)
    assert [(x.heads, y.heads) for x, y in zip(t.values(), s.values())] == [heads] * len(s)
    found, want = SHD()(t, s), oracle_loss(t, s)
    torch.testing.assert_close(found, want)
    parameters = list(student.parameters())
    ours = torch.autograd.grad(found, parameters, retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad(want, parameters, allow_unused=True)
    assert sum(g is not None for g in ours) >= 2
    for x, y in zip(ours, theirs):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-10)


def test_deit_of_timm_six_heads_into_three():
    from timm.models.vision_transformer import VisionTransformer

    def deit(heads):
        torch.manual_seed(heads)
        return VisionTransformer(
            img_size=32, patch_size=8, embed_dim=heads * 8, depth=2, num_heads=heads, num_classes=5, init_values=1e-2
        ).double()

    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check(deit(6), deit(3), lambda model: model(images), (6, 3))
    plain = deit(3)
    plain.blocks[1].attn.fused_attn = False
    with pytest.raises(UserError, match=r"blocks\.1\.attn.*set_fused_attn"), capture(plain):
        pass


def test_llama_with_a_causal_mask_and_grouped_keys():
    transformers = pytest.importorskip("transformers")

    def llama(heads, key_heads, how="sdpa"):
        torch.manual_seed(heads)
        config = transformers.LlamaConfig(
            hidden_size=heads * 8, intermediate_size=32, num_hidden_layers=2, num_attention_heads=heads,
            num_key_value_heads=key_heads, vocab_size=50, max_position_embeddings=32, attn_implementation=how,
        )  # fmt: skip
        return transformers.LlamaModel(config).double().eval()

    tokens = torch.randint(0, 50, (2, 11), generator=torch.Generator().manual_seed(0))
    check(llama(8, 2), llama(4, 2), lambda model: model(tokens), (8, 4))
    with pytest.raises(UserError, match="attn_implementation='sdpa'"), capture(llama(4, 2, "eager")):
        pass
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0  # padded on the left: rows with every key masked
    teacher, student = llama(8, 2), llama(4, 2)
    with capture(teacher) as t, capture(student) as s:
        for model in (teacher, student):
            model(tokens, attention_mask=mask)
    assert torch.isfinite(SHD()(t, s))


def test_gpt2_with_a_transposed_projection_twenty_five_heads_into_sixteen():
    transformers = pytest.importorskip("transformers")

    def gpt2(heads):
        torch.manual_seed(heads)
        config = transformers.GPT2Config(
            n_embd=heads * 4, n_layer=2, n_head=heads, vocab_size=50, n_positions=32, attn_implementation="sdpa"
        )
        return transformers.GPT2Model(config).double().eval()

    tokens = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    check(gpt2(25), gpt2(16), lambda model: model(tokens), (25, 16))
