"""What samples are compared with: images, statistics of features, or both in one file (ADM)."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dit_shd.core import hashing
from dit_shd.core.errors import UserError
from dit_shd.core.names import printable
from dit_shd.core.places import expanded
from dit_shd.data.image_sets import ImageSet, NpzImages
from dit_shd.data.open_images import open_images
from dit_shd.data.sources.detect import is_packed
from dit_shd.evaluation.extraction import extract_features
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.features import FeatureNetwork
from dit_shd.evaluation.statistics_file import StatisticsFile, is_statistics_file, read_statistics

UNKNOWN = (
    "the statistics do not say of which network, resizing and size of images they are; they are taken as the 2015 "
    "Inception's, of images like the samples"
)
"""A remark on statistics of pytorch-fid, clean-fid, EDM and the like."""


@dataclass(frozen=True)
class Reference:
    """A named reference."""

    name: str
    images: ImageSet | None = None
    statistics: StatisticsFile | None = None
    """They take precedence over those of `images` (ADM's file: statistics of the training set, and 10,000 images for
    precision and recall)."""
    prepared: FeatureSet | None = None
    """Features that were extracted before, in place of both."""
    sha256: str = ""
    """Of the file, if that is not the hash of `images`."""

    @property
    def image_count(self) -> int:
        """Number of images whose features are available one by one; 0 for statistics alone."""
        if self.prepared is not None:
            return 0 if self.prepared.pooled is None else len(self.prepared.pooled)
        return 0 if self.images is None else self.images.shape[0]

    @property
    def lossy(self) -> bool:
        """Whether some of its images are JPEG or lossy WebP."""
        if self.statistics is not None and self.statistics.texts.get("lossy"):
            return True
        return self.images is not None and self.images.lossy

    @property
    def notes(self) -> list[str]:
        """Remarks on its images, and on statistics whose origin is not known."""
        file = self.statistics
        of_file = file.texts.get("notes", "").split("\n") if file is not None else []
        if file is not None and not file.complete and not file.texts.get("network_sha256"):  # only ADM's have mu_s
            of_file.append(UNKNOWN)
        return [*(printable(note) for note in of_file if note), *(self.images.notes if self.images is not None else ())]

    def has_spatial(self, network: FeatureNetwork) -> bool:
        """Whether sFID can be computed."""
        if self.prepared is not None:
            return self.prepared.spatial is not None
        if self.statistics is not None:
            return self.statistics.complete
        return network.has_spatial

    def check(self, samples: ImageSet, network: FeatureNetwork) -> None:
        """Refuse a reference that these samples cannot be compared with in the features of this network.

        Raises:
            UserError: Images of another shape, or statistics of another network or of images of another shape.
        """
        shapes = [] if self.images is None else [self.images.shape[1:]]
        if self.statistics is not None and self.statistics.shape is not None:
            shapes.append(self.statistics.shape)  # type: ignore[arg-type]
        for shape in shapes:
            if shape != samples.shape[1:]:
                raise UserError(
                    f"{self.name}: wanted reference images like the samples, (y, x, c) = {samples.shape[1:]}, "
                    f"found {shape}; make both of one size, the same way (crop=true: the centre crop of stored images)"
                )
        if self.prepared is not None and self.prepared.title != network.title:
            raise UserError(
                f"{self.name}: wanted features of {network.title}, found those of {self.prepared.title}; "
                "extract both with one network"
            )
        if self.prepared is not None and self.prepared.network not in ("", network.identity):
            raise UserError(
                f"{self.name}: wanted features of {network.title} with weights and options {network.identity}, found "
                f"those of {self.prepared.network}; extract both with one network"
            )
        if self.statistics is not None:
            self._check_network(self.statistics.texts, network)

    def _check_network(self, texts: dict[str, str], network: FeatureNetwork) -> None:
        # ADM's files do not record their network, the 2015 Inception.
        sha256 = texts["network_sha256"]
        if not (sha256 == network.sha256 if sha256 else network.is_fid):
            recorded = f"{texts['network'] or 'a network'} ({sha256[:8]})" if sha256 else "a network it does not name"
            raise UserError(
                f"{self.name}: wanted statistics of feature network {network.title} ({network.sha256[:8]}), "
                f"found those of {recorded}; use the same features=NAME for both, or a reference of images"
            )
        options, wanted = texts["network_options"], json.dumps(dict(network.options), sort_keys=True)
        if options and options != wanted:  # files of earlier versions do not say
            raise UserError(
                f"{self.name}: wanted statistics of {network.title} with options {wanted}, found {options}; use the "
                "same features={...} for both, or a reference of images"
            )

    def features(self, network: FeatureNetwork, batch_size: int) -> FeatureSet:
        """The features that metrics compare with; images are run through the network.

        Raises:
            UserError: Images that cannot be read, or statistics of another number of features.
        """
        if self.prepared is not None:
            return self.prepared.to(network.device)
        extracted = None if self.images is None else extract_features(network, self.images, batch_size)
        if self.statistics is None:
            assert extracted is not None, "a reference has images or statistics"
            return extracted
        pooled, spatial = self.statistics.pooled, self.statistics.spatial
        if extracted is not None and extracted.statistics.mean.shape != pooled.mean.shape:
            raise UserError(
                f"{self.name}: wanted statistics of {len(extracted.statistics.mean)} features, "
                f"found {len(pooled.mean)}; use the network they were made with"
            )
        base = extracted or FeatureSet(pooled, title=network.title, is_fid=network.is_fid)
        moved = None if spatial is None else spatial.to(network.device)
        return replace(base, statistics=pooled.to(network.device), spatial=moved)

    def describe(self) -> dict[str, Any]:
        """The entry of the record: hash, counts, and the origin of mean and covariance."""
        sha256 = self.sha256 or (self.images.sha256() if self.images else "")
        entry: dict[str, Any] = {"sha256": sha256, "n": self.image_count}
        if self.statistics is not None:
            texts = {key: value for key, value in self.statistics.texts.items() if value}
            arrays = ["mu", "sigma", "mu_s", "sigma_s"] if self.statistics.complete else ["mu", "sigma"]
            entry["statistics"] = {"n": self.statistics.pooled.n or "not recorded", "entries": arrays, **texts}
        return entry


def open_reference(text: str, what: str, crop: tuple[int, ...] | None = None) -> Reference:
    """Open images as `open_images` reads them, or an npz file with mu [d] and sigma [d,d], and perhaps arr_0.

    Args:
        text: A dataset's name, a file or a folder.
        what: The config key, for errors.
        crop: Size (y, x, c) of the centre crop of images in a folder, tables or tars; None for none.

    Raises:
        UserError: As `open_images`; or statistics that `read_statistics` refuses.
    """
    path = Path(expanded(text))
    if not path.is_file() or is_packed(path) or not is_statistics_file(path, text):
        return Reference(text, images=open_images(text, what, crop, lenient=True))
    statistics = read_statistics(path, text)
    images = NpzImages(path, text) if statistics.has_images else None
    return Reference(text, images, statistics, sha256=hashing.sha256(path))
