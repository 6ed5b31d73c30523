"""capture() on other people's models: it changes nothing, maps and W^O are right by independent computation."""

import oracle
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from clients import CLIENTS, Client
from dit_shd import capture
from dit_shd.core.errors import UserError

aten = torch.ops.aten


class Watched(TorchDispatchMode):
    """What PyTorch itself computes below every function: softmax results, and everything of floating type."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (aten._softmax.default, aten._safe_softmax.default):
            self.maps.append(result)
        if func is aten._scaled_dot_product_flash_attention_for_cpu.default:  # chosen by the model itself
            q, k, _, *more = args
            how = {**dict(zip(("dropout_p", "is_causal"), more)), **(kwargs or {})}
            self.maps.append(
                oracle.maps(q, k, how.get("scale") or q.shape[-1] ** -0.5, causal=how.get("is_causal", False))
            )
        if isinstance(result, Tensor) and result.is_floating_point():
            self.made.append(result)
        return result


@pytest.fixture(params=sorted(CLIENTS))
def client(request) -> Client:
    found = CLIENTS[request.param]
    for package in found.needs:
        pytest.importorskip(package)
    return found


def build(client: Client) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = client.build()
        for parameter in model.parameters():
            if parameter.is_floating_point() and type(parameter) is nn.Parameter:
                nn.init.normal_(parameter, std=0.2)
    return model.train(client.training)


def state(model: nn.Module) -> dict:
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return {n: (type(m), list(vars(m)), [len(getattr(m, h)) for h in hooks]) for n, m in model.named_modules()}


def first(output) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return first(next(iter(output.values())) if isinstance(output, dict) else output[0])


def test_what_capture_makes_of_it(client):
    model = build(client)
    before = state(model)
    with torch.no_grad():
        plain = first(client.run(model))
        if not client.recorded:
            with pytest.raises(UserError, match=client.reason), capture(model):
                client.run(model)
            assert state(model) == before
            return
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with Watched() as watched, sdpa_kernel(SDPBackend.MATH):
                client.run(model)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        shown = {}
        for _ in range(2):  # what the first forward shows, and what later ones make of it
            with capture(model) as captures:
                output = first(client.run(model))
                assert torch.equal(output, plain) or (not client.exact and torch.allclose(output, plain, atol=1e-5))
                layers = dict(captures)
            assert state(model) == before
            assert len(layers) == client.recorded, captures.report()
            assert sum(not line.shapes for line in captures.report().lines) == client.left_out, captures.report()
            shown = shown or layers
            assert list(layers) == list(shown)
            for name, layer in layers.items():
                assert torch.equal(layer.map(), shown[name].map()), name
                assert is_a_map(layer, watched.maps), name
                if client.projections:
                    assert layer.out is not None, (name, layer.why_no_out)
                    assert is_an_output(layer, watched.made), name
                else:
                    assert layer.out is None
                    assert client.reason in layer.why_no_out


def is_a_map(layer, maps: list[Tensor]) -> bool:
    """Whether PyTorch's own softmax gave these rows."""
    b, h, n, m = layer.shape
    want = layer.map()
    for each in maps:
        if each.shape[-1] == m and each.numel() >= want.numel() and each.numel() % (b * h * m) == 0:
            whole = each.reshape(b, h, -1, m)
            starts = range(whole.shape[2] - n + 1)
            if any(torch.allclose(whole[:, :, i : i + n].to(want.dtype), want, atol=1e-4) for i in starts):
                return True
    return False


def is_an_output(layer, made: list[Tensor]) -> bool:
    """Whether W^O times the layer's result is what PyTorch made of it, but for a bias."""
    b, h, n, _ = layer.shape
    value = layer.value[:, layer.key_heads(range(h))]
    want = torch.einsum("bhnm,bhmd,hde->bne", layer.map(), value.to(layer.map().dtype), layer.out.to(layer.map().dtype))
    for each in made:
        if each.numel() != want.numel():
            continue
        layouts = [each.reshape(-1, want.shape[-1]).view_as(want)] if each.is_contiguous() else [each]
        if each.ndim == 3 and each.shape[1] == b and each.shape[0] == n:
            layouts.append(each.transpose(0, 1))
        if each.ndim == 2 and each.shape[0] == b * n:
            layouts.append(each.view(n, b, -1).transpose(0, 1))
        if each.ndim == 3 and each.shape[2] == n and each.shape[1] == want.shape[-1]:
            layouts.append(each.transpose(1, 2))
        for found in layouts:
            if found.shape == want.shape:
                rest = (found.to(want.dtype) - want).flatten(0, 1)
                rows = want.flatten(0, 1)
                near = 1e-3 * (rows - rows.mean(0)).norm() + 1e-6 * rows.norm()
                if (rest - rest.mean(0)).norm() <= near:
                    return True
    return False


def test_a_loss_on_the_map_reaches_the_parameters(client):
    if not client.recorded or "torchao" in client.needs:
        pytest.skip("nothing to train")
    model = build(client)
    trained = [p for p in model.parameters() if p.requires_grad]
    with capture(model) as captures:
        client.run(model)
    loss = sum(layer.map().square().sum() for layer in captures.values())
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    assert any(g is not None and g.abs().max() > 0 for g in found)
