"""ADM-comparable: only with the real weights, 50,000 samples and all of the reference; otherwise it says why not."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from dit_shd.core.plugins import Plugin
from dit_shd.data.image_sets import ImageSet
from dit_shd.evaluation import comparability
from dit_shd.evaluation.comparability import lie_by_class, reasons_against, sampled_differently
from dit_shd.evaluation.feature_set import Statistics
from dit_shd.evaluation.features.digits import DigitsFeatures
from dit_shd.evaluation.reference import Reference
from dit_shd.evaluation.statistics_file import StatisticsFile


class Images(ImageSet):
    """A set of that many images, none of which is ever looked at."""

    def __init__(self, n: int, **attributes):
        self.name, self.shape = "images", (n, 256, 256, 3)
        self.__dict__.update(attributes)

    def batches(self, size):
        raise AssertionError

    def sha256(self):
        raise AssertionError


class Real(DigitsFeatures):
    is_fid = True


def reference(images: int = 10_000, n: int = 0, complete: bool = True) -> Reference:
    known = Statistics(n, torch.zeros(2), torch.eye(2))
    file = StatisticsFile(known, known if complete else None, None, {"network_sha256": ""}, True)
    return Reference("adm.npz", Images(images) if images else None, file)


def reasons(samples=None, against=None, network=None, metrics=()) -> list[str]:
    return reasons_against(samples or Images(50_000), against or reference(), network or Real(), metrics)


def test_everything_as_published_is_comparable():
    metrics = [Plugin(name) for name in ("frechet", "spatial_frechet", "inception_score", "precision_recall", "kid")]
    assert reasons(metrics=metrics) == []
    assert reasons(Images(50_000, labels=np.arange(50_000) % 1000)) == []
    assert reasons(against=reference(n=1_281_167)) == []


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"network": DigitsFeatures()}, "features digits are not the 2015 Inception"),
        ({"samples": Images(49_999)}, "49,999 samples, not 50,000"),
        ({"samples": Images(50_000, lossy=True)}, "the samples are JPEG files"),
        ({"samples": Images(50_000, labels=np.arange(50_000) // 50)}, "sorted by class"),
        ({"against": reference(complete=False)}, "the reference lacks mu_s and sigma_s"),
        ({"against": reference(images=0)}, "0 reference images for precision and recall, not 10,000"),
        ({"against": reference(n=10_000)}, "statistics of only 10,000 reference images"),
        ({"against": Reference("folder", Images(50_000))}, "not a file of statistics"),
        ({"metrics": [Plugin("precision_recall", {"k": 5})]}, "options of precision_recall are not the usual ones"),
    ],
)
def test_each_obstacle_is_named_alone(given, reason):
    (found,) = reasons(**given)
    assert reason in found


ADM = np.arange(50_000) // 50
"""50 of each of 1,000 classes, sorted."""
ORDERS = {
    "rising": ADM,
    "falling": ADM[::-1],
    "blocks": (ADM + 500) % 1000,
    "one out of place": np.append(ADM[:-1], 0),
    "classes in some order": np.random.default_rng(0).permutation(1000)[ADM],
    "eight sorted files": np.tile(np.repeat(np.arange(1000), 6), 9)[:50_000],
    "sixteen sorted files": np.tile(np.repeat(np.arange(1000), 3), 17)[:50_000],
    "eight sorted processes in turn": (np.arange(50_000) % 8 * 6250 + np.arange(50_000) // 8) // 50,
    "every chunk its classes, in turn": np.arange(50_000) // 5000 * 100 + np.arange(50_000) % 100,
    "batches of one class": np.random.default_rng(1).permutation(np.arange(50_000) // 10 % 1000).repeat(10)[:50_000],
    "two classes": np.arange(50_000) // 25_000,
}


@pytest.mark.parametrize("order", ORDERS)
def test_labels_that_lie_by_class_are_an_obstacle(order):
    (found,) = reasons(Images(50_000, labels=ORDERS[order]))
    assert "sorted by class, not in random order" in found


@pytest.mark.parametrize(("n", "chunk"), [(60, 20), (1001, 1000), (5100, 5000), (7500, 5000), (10_000, 5000)])
def test_few_samples_are_asked_in_the_chunks_of_the_score(n, chunk):
    labels = np.arange(n) * 10 // n
    metrics = [Plugin("inception_score", {"chunk": chunk})]
    assert "sorted by class" in " ".join(reasons(Images(n, labels=labels), metrics=metrics))
    shuffled = np.random.default_rng(0).permutation(labels)
    assert "sorted" not in " ".join(reasons(Images(n, labels=shuffled), metrics=metrics))
    one = [Plugin("inception_score", {"chunk": n})]
    assert "sorted" not in " ".join(reasons(Images(n, labels=labels), metrics=one))


@pytest.mark.parametrize(
    ("n", "classes", "chunk"), [(12, 3, 5), (60, 30, 6), (1001, 1000, 1000), (5100, 10, 5000), (10_000, 1000, 5000)]
)
def test_random_order_does_not_lie_by_class(n, classes, chunk):
    """Drawn labels, shuffled equal ones, and very unequal ones."""
    rng = np.random.default_rng(n)
    for _ in range(30):
        drawn = rng.integers(classes, size=n)
        unequal = np.minimum(rng.geometric(2 / classes, size=n), classes)
        for labels in (drawn, rng.permutation(np.arange(n) % classes), unequal):
            assert not lie_by_class(labels, chunk)


@pytest.mark.parametrize(("labels", "chunk"), [([0, 0, 0, 1, 1, 2, 2, 2], 4), ([0, 0, 0, 0, 1, 2, 2], 3)])
@pytest.mark.parametrize("test", ["parts", "neighbours"])
def test_how_rare_an_order_is_follows_from_all_orders(labels, chunk, test, monkeypatch):
    """Few labels in every order, counted one by one: the tails have the mean and the variance over all of them."""
    n, orders = len(labels), np.array(sorted(set(itertools.permutations(labels))))
    of_class = orders[:, :, None] == np.unique(labels)
    if test == "parts":
        in_part = np.arange(n) * -(-n // chunk) // n == np.arange(-(-n // chunk))[:, None]
        table, counts = np.einsum("pn,onc->opc", in_part * 1.0, of_class * 1.0), of_class[0].sum(0)
        expected = in_part.sum(1)[:, None] * counts / n
        values = ((table - expected) ** 2 / expected).sum((1, 2))
        tails = stats.gamma.sf(values, values.mean() ** 2 / values.var(), scale=values.var() / values.mean())
        other = "_in_runs"
    else:
        values = (orders[:, 1:] == orders[:, :-1]).sum(1)
        above = values - values.mean()
        tails = np.where(above > 0, np.exp(-(above**2) / 2 / (values.var() + above.clip(0) / 3)), 1)  # Bernstein's
        other = "_uneven"
    monkeypatch.setattr(comparability, other, lambda *_: False)
    for value in np.unique(values.round(9)):
        rare = int(np.abs(values - value).argmin())
        monkeypatch.setattr(comparability, "CHANCE", min(tails[rare] * (1 + 1e-6), 1.0))
        assert lie_by_class(orders[rare], chunk) == (tails[rare] < 1)
        monkeypatch.setattr(comparability, "CHANCE", tails[rare] * (1 - 1e-6))
        assert not lie_by_class(orders[rare], chunk)


def test_labels_that_say_nothing_of_order_are_no_obstacle():
    for labels in (np.zeros(50_000), np.arange(50_000), np.arange(50_000) % 1000, np.arange(50_000) % 7):
        assert reasons(Images(50_000, labels=labels.astype(int))) == []


def test_settings_of_the_sampler_are_compared_where_all_record_them_and_decisive_ones_everywhere():
    known = {"steps": 50, "guidance": 1.0, "guidance_schedule": "constant", "labels": "random", "rounding": "floor"}
    one, other = {**known, "solver": "ddpm"}, {**known, "solver": "ddim"}
    assert sampled_differently(["a", "b"], [one, other]) == ["sampled with different solver: a ddpm, b ddim"]
    assert sampled_differently(["a", "b", "c"], [one, other, known]) == []
    less = {key: value for key, value in known.items() if key != "rounding"}
    assert sampled_differently(["a", "b"], [known, less]) == [
        "sampled with different rounding: a floor, b not recorded"
    ]
