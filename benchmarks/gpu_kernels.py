"""Parts of gpu.py: the card, counts, the kernels' values, and their times beside what else there is."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import roofline
import torch
import torch.nn.functional as F
import triton
from _gpu import Run, Sizes, attempt, issued, ratio, row, table, timed

from dit_shd.attention.bias import Bias
from dit_shd.attention.capture import Capture
from dit_shd.attention.kernels import captures
from dit_shd.attention.relative_bias import RelativeBias
from dit_shd.attention.streamed import attend
from dit_shd.squeezing.divergence import attention_kl
from dit_shd.squeezing.projections import Projections
from dit_shd.squeezing.squeeze import Squeeze, squeeze


def card(sizes: Sizes) -> None:
    """Which card, which versions, and its two ceilings."""
    versions = f"torch {torch.__version__}, triton {triton.__version__}, Python {platform.python_version()}"
    if not sizes.gpu:
        row("card", note=f"none; {versions}")
    else:
        facts = torch.cuda.get_device_properties(0)
        row("card", facts.total_memory / 2**30, "GiB", note=f"{facts.name}, sm_{facts.major}{facts.minor}; {versions}")
    n, words = (8192, 2**30) if sizes.gpu else (64, 2**10)
    a, b = (torch.randn(n, n, device=sizes.device, dtype=sizes.dtype) for _ in range(2))
    x, y = (torch.empty(words, device=sizes.device, dtype=torch.float32) for _ in range(2))
    seconds, _ = timed({"products": lambda: a @ b, "copy": lambda: y.copy_(x)}, sizes, "ceiling")
    row("products", 2 * n**3 / seconds["products"] / 1e12, "TFLOP/s", note=f"{n} x {n} x {n}, {sizes.dtype}")
    row("memory", 8 * words / seconds["copy"] / 1e12, "TB/s", note="read and written")
    counted(sizes)


def counted(sizes: Sizes) -> None:
    """The rooflines, by count."""
    for n, b in sizes.batch.items():
        layer = roofline.Layer(b, n, *sizes.heads, sizes.width)
        for name, one in roofline.CARDS.items():
            shd, own = (roofline.seconds(f(layer), one) for f in (roofline.counts, roofline.own_attention))
            note = f"counted, not measured: {1e3 * shd:.3f} ms over {1e3 * own:.3f} ms at least"
            row(f"SHD of own attention, {n} tokens, {name}", shd / own, note=note)


def layers(
    sizes: Sizes, n: int, dtype: torch.dtype | None = None, bias: bool = False, b: int | None = None
) -> tuple[Capture, Capture]:
    """Teacher and student; with a learnable relative bias if wanted."""
    r, dtype, b = torch.Generator().manual_seed(0), dtype or sizes.dtype, b or sizes.batch[n]
    n = sizes.tokens or n
    window = round(n**0.5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=r).to(sizes.device)

    sides = []
    for heads in sizes.heads:
        q, k, v = (draw(b, heads, n, sizes.width).to(dtype) for _ in range(3))
        added = RelativeBias(draw((2 * window - 1) ** 2 + 3, heads), window) if bias else None
        sides.append(Capture(q, k, v, sizes.width**-0.5, added))
    out = draw(sizes.heads[0], sizes.width, 2 * sizes.width) / (2 * sizes.width) ** 0.5
    teacher, student = replace(sides[0], out=out), sides[1]
    for x in (student.query, student.key, *(student.bias.leaves if student.bias else ())):
        x.requires_grad_()
    return teacher, student


def values(sizes: Sizes) -> None:
    """The kernels against float64 by the streamed form, and twice against themselves: no race may show."""
    for n, dtype, limit, bias in (
        (333, torch.float32, 1e-5, False),
        (256, torch.float32, 1e-5, True),
        (256, torch.bfloat16, 1e-2, True),
    ):
        what = f"{n} tokens, {str(dtype).removeprefix('torch.')}{', MDT bias' if bias else ''}"
        with attempt(what):
            teacher, student = layers(sizes, n, dtype, bias, b=2)
            for name, errors in (
                ("SHD", _shd_errors(teacher, student)),
                ("own attention", _attention_errors(student)),
            ):
                row(f"{name}, {what}: error", max(errors.values()), "", f"<= {limit}", _worst(errors))
            with torch.no_grad():
                runs = [squeeze(teacher, sizes.heads[1], backend="triton").weight for _ in range(8)]
            same = all(torch.equal(runs[0], run) for run in runs)
            row(f"weights, {what}: 8 runs alike", float(same), "", ">= 1", "bit for bit")


def _worst(errors: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {error:.1e}" for name, error in errors.items())


def _off(value: torch.Tensor, want: torch.Tensor) -> float:
    return float((value.detach().double() - want).norm() / want.norm().clamp(min=1e-30))


def _shd_errors(teacher: Capture, student: Capture) -> dict[str, float]:
    """Relative errors of the weights, the value and the gradients."""
    fine_teacher, fine = _doubled(teacher), _doubled(student)
    exact = squeeze(fine_teacher, student.heads)
    weights = squeeze(teacher, student.heads, backend="triton")
    want = attention_kl(fine_teacher, fine, replace(exact, weight=weights.weight.double()))
    value = attention_kl(teacher, student, weights, backend="triton")
    names = ["dq", "dk", "dbias"]
    grads = zip(names, torch.autograd.grad(value.sum(), _leaves(student)))
    wants = dict(zip(names, torch.autograd.grad(want.sum(), _leaves(fine))))
    errors = {"weights": _off(weights.weight, exact.weight), "value": _off(value, want.detach())}
    return errors | {name: _off(grad, wants[name]) for name, grad in grads}


def _attention_errors(student: Capture) -> dict[str, float]:
    """The same of the student's own attention."""
    fine = _doubled(student)
    out = captures.attention(student.query, student.key, student.value, student.scale, student.bias)
    want = fine.map() @ fine.value
    upstream = torch.randn_like(out)
    names = ["dq", "dk", "dbias"]
    grads = zip(names, torch.autograd.grad(out, _leaves(student), upstream))
    wants = dict(zip(names, torch.autograd.grad(want, _leaves(fine), upstream.double())))
    return {"output": _off(out, want.detach())} | {name: _off(grad, wants[name]) for name, grad in grads}


def _leaves(side: Capture) -> list[torch.Tensor]:
    return [side.query, side.key, *(side.bias.leaves if side.bias else ())]


def _doubled(side: Capture) -> Capture:
    """In float64, with leaves of its own."""

    def leaf(x: torch.Tensor) -> torch.Tensor:
        return x.detach().double().requires_grad_(x.requires_grad)

    bias = None if side.bias is None else side.bias.rebuilt([leaf(x) for x in side.bias.leaves])
    out = None if side.out is None else side.out.double()
    return Capture(leaf(side.query), leaf(side.key), leaf(side.value), side.scale, bias, out=out)


def materialised(teacher: Capture, student: Capture, weight: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Whole maps, kl_div and autograd under autocast: what one would write down."""
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        with torch.no_grad():
            maps = ((teacher.query @ teacher.key.mT) * teacher.scale).float().softmax(-1)
            target = (maps * weight[..., None]).unflatten(1, (student.heads, -1)).sum(2)
        logs = ((student.query @ student.key.mT) * student.scale).float().log_softmax(-1)
        return F.kl_div(logs, target, reduction="none").sum((1, 3)).mean(1)


def kernels(sizes: Sizes, n: int) -> None:
    """Divergence, squeeze and both against the materialising form, the other backends and own attention."""
    teacher, student = layers(sizes, n)
    own_value = student.value.detach().requires_grad_()
    g, projections = student.heads, Projections()  # as in training: a frozen teacher's factors are computed once

    def squeezed(backend: str, **options: bool) -> Squeeze:
        return squeeze(teacher, g, backend=backend, projections=projections, check=False, **options)  # type: ignore[arg-type]

    weights = {name: squeezed(name) for name in ("triton", "streamed")}
    teacher = replace(teacher, mixed=F.scaled_dot_product_attention(teacher.query, teacher.key, teacher.value))

    def divergence(backend: str) -> Run:
        found = weights.get(backend, weights["streamed"])
        return lambda: attention_kl(teacher, student, found, backend=backend, check=False).sum().backward()  # type: ignore[arg-type]

    def both(backend: str) -> None:
        found = squeezed(backend, keep_maps=True)
        attention_kl(teacher, student, found, backend=backend, check=False).sum().backward()  # type: ignore[arg-type]

    def own() -> None:
        with torch.no_grad():
            F.scaled_dot_product_attention(teacher.query, teacher.key, teacher.value)
        F.scaled_dot_product_attention(student.query, student.key, own_value).sum().backward()

    what = f"{n} tokens, batch {sizes.batch[n]}"
    sides: dict[str, Run] = {f"divergence, {name}": divergence(name) for name in ("triton", "streamed", "fused")}
    if n <= sizes.materialised_most:
        weight = weights["streamed"].weight
        sides["divergence, materialised"] = lambda: (
            materialised(teacher, student, weight, sizes.device).sum().backward()
        )
    for name in ("triton", "streamed", "fused"):
        sides[f"squeeze, {name}"] = lambda name=name: squeezed(name)
    sides |= {"SHD, triton": lambda: both("triton"), "SHD, streamed": lambda: both("streamed"), "own attention": own}
    seconds, peak = timed(sides, sizes, what)
    table(what, seconds, peak)
    wanted = ">= 10" if n == 4096 else ""
    ratio(f"{what}: divergence", seconds, "divergence, materialised", "divergence, triton", wanted)
    ratio(f"{what}: SHD of own attention", seconds, "SHD, triton", "own attention", "<= 2")
    if "SHD, triton" in seconds:
        layer = roofline.Layer(sizes.batch[n], n, *sizes.heads, sizes.width)
        least = roofline.seconds(roofline.counts(layer), roofline.CARDS["H100"])
        row(f"{what}: SHD of an H100's roofline", seconds["SHD, triton"] / least, note=f"{1e3 * least:.3f} ms, counted")
    alone = issued({name: sides[name] for name in ("SHD, triton", "own attention") if name in seconds}, sizes, what)
    ratio(f"{what}: SHD of own attention, the GPU alone", alone, "SHD, triton", "own attention")


def attention(sizes: Sizes, n: int) -> None:
    """MDT's own attention, its table learning: kernels against the streamed form, FlexAttention and no bias at all."""
    _, student = layers(sizes, n, bias=True)
    q, k, v = student.query, student.key, student.value.detach().requires_grad_()
    bias: Any = student.bias

    def backward(run: Callable[[Bias | None], torch.Tensor], added: Bias | None) -> Run:
        return lambda: run(added).sum().backward()

    sides: dict[str, Run] = {
        "triton": backward(lambda added: captures.attention(q, k, v, student.scale, added), bias),
        "no bias, stock": backward(lambda added: F.scaled_dot_product_attention(q, k, v), None),
    }
    if n <= sizes.materialised_most:
        sides["streamed"] = backward(lambda added: _streamed(q, k, v, student.scale, added), bias)  # type: ignore[arg-type]
    if sizes.gpu:
        sides["FlexAttention"] = _flex(q, k, v, student.scale, bias)
    what = f"{n} tokens, batch {q.shape[0]}"
    seconds, peak = timed(sides, sizes, what)
    table(what, seconds, peak)
    ratio(f"{what}: of stock attention without a bias", seconds, "triton", "no bias, stock")
    ratio(f"{what}: FlexAttention", seconds, "FlexAttention", "triton")
    alone = issued({name: sides[name] for name in ("triton", "no bias, stock") if name in seconds}, sizes, what)
    ratio(f"{what}: of stock attention without a bias, the GPU alone", alone, "triton", "no bias, stock")


def _streamed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, bias: Bias) -> torch.Tensor:
    """`attend` without kernels: a subclass of the bias that they do not know."""

    class Unknown(RelativeBias):
        pass

    assert isinstance(bias, RelativeBias)
    return attend(q, k, v, scale, Unknown(bias.leaves[0], bias.window))


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, bias: RelativeBias) -> Run:
    """FlexAttention, compiled, with the table read by its score_mod."""
    from torch.nn.attention.flex_attention import flex_attention

    (leaf,), code = bias.leaves, RelativeBias.codes(bias.window).to(q.device)
    offset = (bias.window - 1) * (2 * bias.window - 1) + (bias.window - 1)
    compiled = torch.compile(flex_attention)

    def added(score: Any, b: Any, h: Any, row: Any, col: Any) -> Any:
        return score + leaf[code[row] - code[col] + offset, h]

    return lambda: compiled(q, k, v, score_mod=added, scale=scale).sum().backward()
