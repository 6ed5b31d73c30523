"""ADM-comparable: only with the real weights, 50,000 samples and all of the reference; otherwise it says why not."""

import numpy as np
import pytest
import torch

from dit_shd.core.plugins import Plugin
from dit_shd.data.image_sets import ImageSet
from dit_shd.evaluation.comparability import obstacles
from dit_shd.evaluation.feature_set import Statistics
from dit_shd.evaluation.features.digits import Digits
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


class Real(Digits):
    is_fid = True


def reference(images: int = 10_000, n: int = 0, complete: bool = True) -> Reference:
    known = Statistics(n, torch.zeros(2), torch.eye(2))
    file = StatisticsFile(known, known if complete else None, None, {"network_sha256": ""}, True)
    return Reference("adm.npz", Images(images) if images else None, file)


def reasons(samples=None, against=None, network=None, metrics=()) -> list[str]:
    return obstacles(samples or Images(50_000), against or reference(), network or Real(), metrics)


def test_everything_as_published_is_comparable():
    metrics = [Plugin(name) for name in ("frechet", "spatial_frechet", "inception_score", "precision_recall", "kid")]
    assert reasons(metrics=metrics) == []
    assert reasons(Images(50_000, labels=np.arange(50_000) % 1000)) == []
    assert reasons(against=reference(n=1_281_167)) == []


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"network": Digits()}, "features digits are not the 2015 Inception"),
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
