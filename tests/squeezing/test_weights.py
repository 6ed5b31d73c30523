"""Joint and per-query weights, backends and layouts of the squeeze: against brute force and the naive mathematics."""

import copy
import dataclasses
import itertools

import numpy as np
import oracle
import pytest
import torch
from random_captures import naive, random_capture, shared_keys

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.squeezing.matching import MapSimilarity, _reassigned, group_similarity, matched
from dit_shd.squeezing.plans import contiguous
from dit_shd.squeezing.projections import Projections
from dit_shd.squeezing.squeeze import squeeze
from dit_shd.squeezing.weights import simplex_least_squares


def by_supports(gram, target):
    """The same minimiser by trying every support: the best of all equality-constrained solutions that are feasible."""
    k, best = len(target), (np.inf, None)
    for size in range(1, k + 1):
        for held in itertools.combinations(range(k), size):
            system = np.zeros((size + 1, size + 1))
            system[:size, :size] = gram[np.ix_(held, held)]
            system[:size, size] = system[size, :size] = 1
            solved = np.linalg.solve(system, np.append(target[list(held)], 1))[:size]
            if (solved >= 0).all():
                w = np.zeros(k)
                w[list(held)] = solved
                best = min(best, (w @ gram @ w / 2 - w @ target, tuple(w)))
    return np.array(best[1])


@pytest.mark.parametrize("k", [2, 3, 4, 7])
def test_simplex_least_squares_is_the_best_over_all_supports(k):
    r = np.random.default_rng(k)
    basis = r.standard_normal((40, k + 1, k)) * r.uniform(0.1, 3, (40, 1, k))
    gram, target = np.einsum("npi,npj->nij", basis, basis), r.standard_normal((40, k)) * 2
    found = simplex_least_squares(torch.from_numpy(gram), torch.from_numpy(target)).numpy()
    want = np.stack([by_supports(g, t) for g, t in zip(gram, target)])
    np.testing.assert_allclose(found, want, atol=1e-8)
    assert 0 < (want == 0).mean() < 1  # some supports are partial, or this proves little


def naive_problem(a, x, members):
    """P[i] = A_i sum X and Y = sum A_i X_i of one sample's group: [k,n,e], [n,e]."""
    both = x[members].sum(0)
    return torch.stack([a[i] @ both for i in members]), sum(a[i] @ x[i] for i in members)


@pytest.mark.parametrize(("h", "g"), [(4, 2), (6, 2), (7, 3), (5, 1)])
@pytest.mark.parametrize("each_row", [False, True])
def test_joint_and_per_query_weights_by_brute_force(h, g, each_row):
    capture = random_capture(h=h, n=5, m=6, seed=h + g)
    a, x = naive(capture)
    found = squeeze(capture, g, method="per_query" if each_row else "joint")
    for b in range(2):
        for part in contiguous(h, g):
            p, y = naive_problem(a[b], x[b], list(part))
            for n in range(5):
                rows = slice(n, n + 1) if each_row else slice(None)
                vectors, goal = p[:, rows].flatten(1).numpy(), y[rows].flatten().numpy()
                want = by_supports(vectors @ vectors.T + 1e-13 * np.eye(len(part)), vectors @ goal)
                got = found.weight[b, list(part), n if each_row else 0].numpy()
                error = [np.linalg.norm(w @ vectors - goal) for w in (got, want)]
                assert error[0] <= error[1] * (1 + 1e-6) + 1e-9
                np.testing.assert_allclose(got.sum(), 1)
                assert got.min() >= 0


def test_of_a_pair_joint_is_the_clamped_alpha_and_residuals_are_ordered():
    pairs = random_capture(h=4, b=50, n=4, m=4, seed=2)
    torch.testing.assert_close(squeeze(pairs, 2, method="joint").weight, squeeze(pairs, 2).weight)
    triples = random_capture(h=6, b=50, n=4, m=4, seed=3)
    progressive, joint, rows = (squeeze(triples, 2, method=m).residual for m in ("pairwise", "joint", "per_query"))
    assert (joint <= progressive + 1e-9).all()
    assert (rows <= joint + 1e-9).all()
    assert (joint < progressive - 1e-3).any()
    assert (rows < joint - 1e-3).any()
    w = squeeze(triples, 2, method="joint").w[..., 0]
    torch.testing.assert_close(joint, oracle.residual(*naive(triples), w, contiguous(6, 2)), rtol=1e-6, atol=1e-9)


def test_permuting_the_heads_of_a_group_permutes_joint_weights():
    capture = random_capture(h=3, bias=False)
    order = torch.tensor([2, 0, 1])
    moved = dataclasses.replace(
        capture, query=capture.query[:, order], key=capture.key[:, order], value=capture.value[:, order],
        out=capture.out[order],
    )  # fmt: skip
    want = squeeze(capture, 1, method="joint").weight[:, order]
    torch.testing.assert_close(squeeze(moved, 1, method="joint").weight, want)


def test_equal_maps_get_equal_weights():
    capture = random_capture(h=3, bias=False)
    same = dataclasses.replace(
        capture, query=capture.query[:, :1].expand(-1, 3, -1, -1), key=capture.key[:, :1].expand(-1, 3, -1, -1)
    )
    for method in ("joint", "per_query"):
        weight = squeeze(same, 1, method=method).weight
        torch.testing.assert_close(weight, torch.full_like(weight, 1 / 3), rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["pairwise", "joint", "per_query"])
@pytest.mark.parametrize("backend", ["streamed", "fused"])
def test_shared_keys_are_as_if_written_out(method, backend):
    few, written = shared_keys()
    found, want = squeeze(few, 2, method=method, backend=backend), squeeze(written, 2, method=method)
    torch.testing.assert_close(found.weight, want.weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(few.map(), written.map())


@pytest.mark.parametrize("method", ["pairwise", "joint", "per_query"])
@pytest.mark.parametrize(("bias", "causal", "n", "m"), [(True, False, 6, 9), (False, True, 7, 7), (True, True, 7, 7)])
def test_the_fused_backend_finds_the_same_weights(method, bias, causal, n, m):
    capture = random_capture(h=7, n=n, m=m, bias=bias, causal=causal)
    want, found = squeeze(capture, 3, method=method), squeeze(capture, 3, method=method, backend="fused")
    underdetermined = causal and method == "per_query"  # a row that sees two keys cannot tell three heads apart
    torch.testing.assert_close(found.weight, want.weight, rtol=1e-6, atol=1e-3 if underdetermined else 1e-8)
    torch.testing.assert_close(found.residual, want.residual, rtol=1e-6, atol=1e-8)


def test_the_layers_own_result_saves_work_and_changes_nothing():
    capture = random_capture(h=5)
    given = dataclasses.replace(capture, mixed=capture.map() @ capture.value)
    torch.testing.assert_close(squeeze(given, 2).residual, squeeze(capture, 2).residual)
    torch.testing.assert_close(squeeze(given, 2).weight, squeeze(capture, 2).weight)


@pytest.mark.parametrize("e", [3, 200])
def test_projections_narrower_and_wider_than_the_groups(e):
    capture = random_capture(h=6, e=e)
    w, _ = oracle.merge_progressively(*naive(capture), contiguous(6, 1))
    torch.testing.assert_close(squeeze(capture, 1).w[..., 0], w, rtol=1e-8, atol=1e-9)


def test_projections_are_kept_until_the_weights_change():
    out, groups = torch.randn(4, 3, 8, dtype=torch.float64), [[0, 1], [2, 3]]
    cache = Projections()
    first = cache.of(out, groups)
    assert cache.of(out, groups) is first
    out.mul_(2)
    again = cache.of(out, groups)
    torch.testing.assert_close(again @ again.transpose(2, 3), 4 * first @ first.transpose(2, 3))
    flat = again.flatten(1, 2)
    stacked = out[torch.tensor(groups)].flatten(1, 2)
    torch.testing.assert_close(flat @ flat.transpose(1, 2), stacked @ stacked.transpose(1, 2))


def test_projections_follow_a_change_of_any_one_number():
    out, cache = torch.randn(2, 3, 4, dtype=torch.float64), Projections()
    for place in range(out.numel()):
        before = cache.grams(out, [[0, 1]])
        out.view(-1)[place] += 1
        assert not torch.equal(cache.grams(out, [[0, 1]]), before)


def test_projections_follow_weights_that_are_changed_through_data():
    """As an EMA teacher's are in DINO's code; a version does not count it."""
    weight, groups = torch.nn.Parameter(torch.randn(6, 8)), [[0, 1]]
    out, cache = weight.detach().unflatten(0, (2, 3)), Projections()
    first = cache.grams(out, groups)
    assert cache.grams(out, groups) is first and cache.generation == 0
    weight.data.mul_(0.9).add_(torch.randn(6, 8), alpha=0.1)
    torch.testing.assert_close(cache.grams(out, groups), Projections().grams(out, groups), rtol=0, atol=0)
    assert cache.generation == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_projections_follow_a_change_of_one_number_through_data(dtype):
    """As peft merges a sparse adapter: it lies between the diagonals that are compared."""
    weight, groups = torch.nn.Parameter(torch.randn(6, 8, dtype=dtype)), [[0, 1]]
    out, cache = weight.detach().unflatten(0, (2, 3)), Projections()
    for place in range(weight.numel()):
        cache.grams(out, groups)
        weight.data.view(-1)[place] += 0.5
        torch.testing.assert_close(cache.grams(out, groups), Projections().grams(out, groups), rtol=0, atol=0)
    assert cache.generation == weight.numel()


def test_only_so_many_projections_are_kept():
    cache, layers = Projections(size=3), [torch.randn(2, 3, 8) for _ in range(5)]
    for out in layers:
        cache.of(out, [[0, 1]])
    assert len(cache._kept) == 3
    cache.clear()
    assert not cache._kept


def test_projections_go_with_the_weights_that_they_are_of():
    """Quantised weights give another W^O in every forward; a parameter's outlives the views of it."""
    cache, weight = Projections(), torch.nn.Parameter(torch.randn(6, 8))
    kept = cache.of(weight.detach().unflatten(0, (2, 3)), [[0, 1]])
    for forward in range(5):
        out = torch.randn(2, 3, 8)
        cache.of(out, [[0, 1]])
        assert len(cache._kept) == 2 and cache.generation == forward
        del out
    assert cache.of(weight.detach().unflatten(0, (2, 3)), [[0, 1]]) is kept
    assert not copy.deepcopy(cache)._kept


def test_kept_maps_are_the_maps_and_only_if_they_fit():
    capture = random_capture(h=5)
    kept = squeeze(capture, 2, keep_maps=True).maps
    torch.testing.assert_close(kept[3], capture.map()[:, :3])
    torch.testing.assert_close(kept[2], capture.map()[:, 3:])
    assert squeeze(capture, 2, keep_maps=True, chunk_mib=1e-3).maps == {}


def partitions(items, sizes):
    """Every partition of `items` into groups of these sizes."""
    if not sizes:
        yield ()
        return
    for part in itertools.combinations(items, sizes[0]):
        rest = [i for i in items if i not in part]
        for others in partitions(rest, sizes[1:]):
            yield (part, *others)


@pytest.mark.parametrize(("h", "g"), [(6, 3), (7, 3), (6, 2), (5, 4)])
def test_matched_plans_are_the_best_of_all_partitions(h, g):
    r = np.random.default_rng(h)
    similarity = r.random((h, h))
    similarity += similarity.T
    plan = matched(similarity, g)
    sizes = [len(part) for part in contiguous(h, g)]
    assert sorted(map(len, plan)) == sorted(sizes)
    assert sorted(sum(plan, ())) == list(range(h))
    best = max(sum(group_similarity(similarity, part) for part in found) for found in partitions(list(range(h)), sizes))
    assert sum(group_similarity(similarity, part) for part in plan) == pytest.approx(best)
    better = _reassigned(similarity, contiguous(h, g))
    value = sum(group_similarity(similarity, tuple(part)) for part in better)
    assert sum(group_similarity(similarity, part) for part in contiguous(h, g)) - 1e-9 <= value <= best + 1e-9


def test_matching_finds_heads_that_look_alike():
    """Heads 0 and 3, 1 and 4, 2 and 5 are nearly the same; the cosines are those of the whole maps."""
    one = random_capture(h=3, bias=False, n=12, m=12)
    noisy = dataclasses.replace(
        one,
        query=torch.cat([one.query, one.query + 0.05 * torch.randn_like(one.query)], 1),
        key=torch.cat([one.key, one.key], 1),
        value=torch.cat([one.value, one.value], 1),
        out=torch.cat([one.out, one.out]),
    )
    similarity = MapSimilarity(chunk_mib=1e-3)
    similarity.add(noisy)
    flat = noisy.map().transpose(0, 1).flatten(1)
    want = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=2)
    np.testing.assert_allclose(similarity.cosines(), want.numpy(), rtol=1e-9)
    assert matched(similarity.cosines(), 3) == ((0, 3), (1, 4), (2, 5))


def test_heads_are_matched_by_the_rows_that_take_part():
    capture = random_capture(h=4, n=6, m=6)
    weight = torch.tensor([[1.0, 2.0, 0.0, 0.5, 0.0, 1.0]], dtype=torch.float64).repeat(capture.shape[0], 1)
    similarity = MapSimilarity(chunk_mib=1e-3)
    similarity.add(capture, weight)
    flat = (capture.map() * weight[:, None, :, None].sqrt()).transpose(0, 1).flatten(1)
    want = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=2)
    np.testing.assert_allclose(similarity.cosines(), want.numpy(), rtol=1e-9)
    query = torch.where(weight[:, None, :, None] > 0, capture.query, torch.nan)
    padded = MapSimilarity()
    padded.add(dataclasses.replace(capture, query=query), weight)
    np.testing.assert_allclose(padded.cosines(), want.numpy(), rtol=1e-9)


def test_heads_are_matched_in_full_precision_under_autocast():
    capture = random_capture(h=4, n=6, m=6, dtype=torch.float32)
    plain, lower = MapSimilarity(), MapSimilarity()
    plain.add(capture)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower.add(capture)
    assert torch.equal(plain.gram, lower.gram)


def test_a_tile_is_all_that_is_ever_n_by_m():
    """256 tokens, 1/32 MiB: no tensor that any operation makes comes near the 65,536 entries of one head's map."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten

    from dit_shd.attention.relative_bias import RelativeBias
    from dit_shd.attention.streamed import attend
    from dit_shd.squeezing.divergence import attention_kl

    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for x in tree_flatten(result)[0]:
                if isinstance(x, torch.Tensor) and x.untyped_storage().nbytes() // x.element_size() > self.most:
                    self.most = x.untyped_storage().nbytes() // x.element_size()
            return result

    n, d, window = 256, 2, 16
    t = Capture(
        *(torch.randn(1, 4, n, d) for _ in range(3)), 0.7, DenseBias(torch.zeros(1, 1, 1, n)), out=torch.randn(4, d, 8)
    )
    q, k, v = (torch.randn(1, 2, n, d, requires_grad=True) for _ in range(3))
    table = torch.zeros((2 * window - 1) ** 2 + 3, 2, requires_grad=True)
    s = Capture(q, k, v, 0.7, RelativeBias(table, window))
    for method in ("pairwise", "per_query"):
        with Largest() as found:
            attention_kl(t, s, squeeze(t, 2, method=method, chunk_mib=1 / 32), chunk_mib=1 / 32).sum().backward()
            attend(q, k, v, 0.7, s.bias, chunk_mib=1 / 32).sum().backward()
        assert found.most < 32_000, found.most  # the bias's lines, padded for their gradient: 2 * 31 * 16 * 32 = 31,744
