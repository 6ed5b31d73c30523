"""Figures of arrays in memory."""

import numpy as np
import pytest
import torch
from evaluating import pictures, run, sorted_digits

from dit_shd.core.errors import UserError
from dit_shd.data.image_sets import ArrayImages
from dit_shd.diffusion.sampler import Samples
from dit_shd.evaluation.extraction import extract_features
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.features.digits import DigitsFeatures
from dit_shd.evaluation.figures import evaluate
from dit_shd.evaluation.metrics.clip_score import CLIPScore
from dit_shd.evaluation.reference import Reference
from dit_shd.evaluation.scoring import _obstacle, score
from dit_shd.evaluation.statistics_file import write_statistics


def test_score_gives_the_same_figures_and_takes_a_prepared_reference(files):
    samples, reference = pictures(40, seed=1), pictures(50, seed=2)
    record = run(files)
    network = DigitsFeatures()
    direct = score(samples, reference, network)
    prepared = extract_features(network, ArrayImages(reference, "reference"))
    assert direct == pytest.approx(record["figures"], rel=1e-9)
    assert score(torch.from_numpy(samples), prepared, network) == pytest.approx(direct, rel=1e-9)
    assert list(score(samples, prepared, network, ["frechet"])) == ["FD(digits)"]


def test_scores_of_sorted_samples_are_warned_of_in_python(caplog):
    images, labels = sorted_digits()
    many, network = np.concatenate([images] * 11), DigitsFeatures()
    order = np.argsort(np.concatenate([labels] * 11), kind="stable")
    score(many[order], images, network, ["inception_score"])
    assert "because the samples are sorted" in caplog.text


def test_too_few_images_are_warned_of_in_python(caplog):
    """As the command prints it; five images in 64 features."""
    figures = evaluate(pictures(5, seed=1), pictures(20, seed=2), "digits", metrics=["frechet"])
    assert "5 samples for 64 features" in caplog.text
    assert figures.about["reference"] == "20 images"


def test_what_is_left_out_and_remarks_on_the_reference_are_said_in_python(tmp_path, caplog):
    network = DigitsFeatures()
    known = extract_features(network, ArrayImages(pictures(90, 2), "x"))
    write_statistics(
        tmp_path / "s.npz", known, {"network_sha256": network.sha256, "notes": "of 90 images 9 are odd"}, None
    )
    assert set(evaluate(pictures(40, 1), tmp_path / "s.npz", "digits")) == {"FD(digits)", "IS(digits)"}
    assert "kid left out: wanted a reference with images, found only statistics" in caplog.text
    assert "reference: of 90 images 9 are odd" in caplog.text


def test_score_takes_what_was_sampled_and_refuses_what_is_no_array():
    """As its neighbour dit_shd.evaluate does."""
    samples, network = pictures(40, 1), DigitsFeatures()
    sampled = Samples(samples, np.zeros(40, np.int64))
    assert score(sampled, sampled, network, ["frechet"])["FD(digits)"] < 1e-9
    for images, reference in ((list(samples), samples), (samples, "digits"), (samples, None), (3, samples)):
        with pytest.raises(UserError, match=r"^(images|reference_images): wanted an array uint8 \[n,y,x,c\], found "):
            score(images, reference, network)


def test_score_refuses_features_of_another_network():
    network = DigitsFeatures()
    prepared = extract_features(network, ArrayImages(pictures(9, 0), "x"))
    network.title = "other"
    with pytest.raises(UserError, match="extract both with one network"):
        score(pictures(9, 0), prepared, network)


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"options": {"scale": 2.0}}])
def test_score_refuses_features_of_other_weights_or_options_under_one_title(change):
    network = DigitsFeatures()
    images = ArrayImages(pictures(9, 0), "x")
    prepared = extract_features(network, images)
    for name, value in change.items():
        setattr(network, name, value)
    with pytest.raises(UserError, match="wanted features of digits with weights and options"):
        score(pictures(9, 0), prepared, network, ["frechet"])
    unknown = FeatureSet.of(prepared.pooled, title=network.title)
    assert score(pictures(9, 0), unknown, network, ["frechet"])["FD(digits)"] < 1e-3


def test_arrays_are_held_to_the_same_reference_as_files(tmp_path):
    """Statistics of another network with as many features, and images of another size."""
    network = DigitsFeatures()
    network.sha256, network.title = "0" * 64, "other"
    features = extract_features(network, ArrayImages(pictures(90, 0), "x"))
    write_statistics(tmp_path / "other.npz", features, {"network_sha256": network.sha256}, None)
    with pytest.raises(UserError, match="wanted statistics of feature network digits"):
        evaluate(pictures(90, 1), reference=tmp_path / "other.npz", features="digits")
    np.savez(tmp_path / "large.npz", pictures(9, 0, (32, 32, 1)))
    with pytest.raises(UserError, match="wanted reference images like the samples"):
        evaluate(pictures(9, 1), reference=tmp_path / "large.npz", features="digits")
    np.savez(tmp_path / "real.npz", pictures(50, 2))
    scored = evaluate(pictures(40, 1), reference=tmp_path / "real.npz", features="digits")
    assert dict(scored) == pytest.approx(score(pictures(40, 1), pictures(50, 2), DigitsFeatures()))


def test_a_metric_of_prompts_wants_a_network_that_reads_them():
    class OfPrompts(CLIPScore):
        """As somebody's own, which says no more than that."""

    samples, reference = ArrayImages(pictures(9, seed=1), "x"), Reference("y", ArrayImages(pictures(9, seed=2), "y"))
    assert not OfPrompts.needs_text_network
    said = _obstacle(OfPrompts(), samples, reference, DigitsFeatures())
    assert "wanted a network that reads text, found digits" in said


def test_a_script_scores_what_it_sampled_by_the_metrics_it_names():
    """As dit_shd.sample returns images; a name, and options of a metric, as the command line takes them."""
    samples, reference = pictures(40, 1), pictures(50, 2)
    sampled = Samples(samples, np.zeros(40, np.int64))
    figures = evaluate(sampled, reference=reference, features="digits", metrics=["frechet"])
    assert dict(figures) == score(samples, reference, DigitsFeatures(), ["frechet"])
    mirrored = evaluate(samples, reference=Samples(reference, sampled.labels), features="digits", metrics=["frechet"])
    assert dict(mirrored) == dict(figures)
    prepared = extract_features(DigitsFeatures(), ArrayImages(reference, "x"))
    again = evaluate(samples, reference=prepared, features="digits", metrics=["frechet"])
    assert dict(again) == dict(figures)
    options = [{"name": "kid", "subset_size": 20, "subsets": 3}]
    assert "KID(digits)" in evaluate(sampled, reference=reference, features="digits", metrics=options)
    with pytest.raises(UserError, match="metrics: wanted a list, found 'frechet'"):
        evaluate(samples, reference=reference, features="digits", metrics="frechet")
    for wrong in (list(samples), [sampled], None):
        with pytest.raises(UserError, match=r"^samples: wanted an array uint8 .{,120}$"):
            evaluate(wrong, reference=reference, features="digits")
    with pytest.raises(UserError, match="reference: wanted a file like the samples', found an array"):
        evaluate("samples.npz", reference=reference, features="digits")
