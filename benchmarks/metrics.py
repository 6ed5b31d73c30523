"""Metrics: the Frechet distance against scipy's and torch-fidelity's, precision and recall against torch-fidelity's.

    python benchmarks/metrics.py [--images 10000] [--large 50000]

CPU seconds, taken in turn. Features are made up: 2,048 of them, as Inception's positive and correlated (a mixture of
200 directions plus noise, cut at zero). Ours finds density and coverage, too, from the same distances; torch-fidelity's
features are float32 like ours. --large N: precision and recall of N x N images alone, and what they add to the memory
of a process that holds the features (about 6 minutes at 50,000).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # scipy's own threads, too

import time

import numpy as np
import scipy.linalg
import torch
from _measure import child, extra_mib, in_turn, parse, parser
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from dit_shd.evaluation.feature_set import Moments, Statistics
from dit_shd.evaluation.metrics.frechet import frechet_distance
from dit_shd.evaluation.neighbours import manifold

D = 2048
K, DENSITY_K = 3, 5


def features(n: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    """[n, 2048] float32, made some rows at a time so that nothing else ever fills memory."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(200, D, generator=torch.Generator().manual_seed(0)) / 200**0.5
    rows = torch.empty(n, D)
    for part in rows.split(1000):
        part.normal_(0, 0.3, generator=generator)
        part += scale * torch.randn(len(part), 200, generator=generator) @ mixing
    return rows.relu_()


def frechet(repeats: int) -> None:
    one, two = (Statistics.of(features(5000, seed, scale)) for seed, scale in ((1, 1.0), (2, 0.9)))
    m1, m2, s1, s2 = (x.numpy() for x in (one.mean, two.mean, one.covariance, two.covariance))
    found: dict[str, float] = {}

    def scipys() -> None:
        root = scipy.linalg.sqrtm(s1 @ s2)
        found["scipy sqrtm"] = float((m1 - m2) @ (m1 - m2) + np.trace(s1) + np.trace(s2) - 2 * np.trace(root).real)

    def fidelitys() -> None:
        about = ({"mu": m1, "sigma": s1}, {"mu": m2, "sigma": s2})
        found["torch-fidelity"] = fid_statistics_to_metric(*about, verbose=False)["frechet_inception_distance"]

    def ours() -> None:
        found["ours"] = frechet_distance(one, two)

    seconds = in_turn({"scipy sqrtm": scipys, "torch-fidelity": fidelitys, "ours": ours}, repeats, time.process_time)
    for name, value in found.items():
        off = abs(value - found["scipy sqrtm"]) / value
        print(f"Frechet, d = {D}: {name:<15} {seconds[name]:6.2f} s  {value:.6f}  off by {off:.0e}", flush=True)
    for name in ("scipy sqrtm", "torch-fidelity"):
        print(f"Frechet: ours / {name}: {seconds['ours'] / seconds[name]:.3f}", flush=True)


def neighbours(n: int, repeats: int) -> None:
    x, y = features(n, 1), features(n, 2, 0.95)
    found: dict[str, tuple[float, float]] = {}

    def fidelitys() -> None:
        prc = prc_features_to_metric(x, y, prc_neighborhood=K, prc_batch_size=10_000, save_cpu_ram=False, verbose=False)
        found["torch-fidelity"] = prc["precision"], prc["recall"]

    def ours() -> None:
        inside = manifold(x, y, K, DENSITY_K)
        means = inside.sample_inside.double().mean(), inside.reference_inside.double().mean()
        found["ours"] = float(means[0]), float(means[1])

    seconds = in_turn({"torch-fidelity": fidelitys, "ours": ours}, repeats, time.process_time)
    for name, (precision, recall) in found.items():
        print(f"precision, recall, {n} x {n}: {name:<15} {seconds[name]:6.1f} s  {precision:.6f}, {recall:.6f}")
    print(f"precision, recall: ours / torch-fidelity: {seconds['ours'] / seconds['torch-fidelity']:.3f}", flush=True)


def moments(n: int = 20_000) -> None:
    x = features(n, 3) + 100
    streamed = Moments()
    for batch in x.split(64):
        streamed.add(batch)
    found, expected = streamed.statistics(), np.cov(x.double().numpy(), rowvar=False)
    off = np.abs(found.covariance.numpy() - expected).max() / np.abs(expected).max()
    print(f"streamed statistics of {n} x {D}: covariance off numpy.cov by {off:.0e} of its largest entry", flush=True)


def memory(case: dict) -> dict[str, float]:
    x, y = features(case["n"], 1), features(case["n"], 2, 0.95)
    manifold(x[:3000], y[:3000], K, DENSITY_K)  # libraries load their buffers
    start = time.process_time()
    extra = extra_mib(lambda: manifold(x, y, K, DENSITY_K))
    return {"mib": extra, "seconds": time.process_time() - start}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=10_000, help="in each set, for the comparison")
    options.add_argument("--large", type=int, default=0, help="in each set, for time and memory of ours alone")
    args = parse(options, memory)  # type: ignore[arg-type]
    if args.large:
        found = child({"n": args.large, "threads": args.threads})
        print(
            f"precision, recall, density, coverage of {args.large} x {args.large} x {D}: {found['seconds']:.0f} s, "
            f"{found['mib']:.0f} MiB beyond the features"
        )
        return
    moments()
    frechet(args.repeats)
    neighbours(args.images, args.repeats)


if __name__ == "__main__":
    main()
