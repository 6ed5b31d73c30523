"""The keys of `dit-shd encode`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dit_shd.core.config import REQUIRED, check_ranges, option
from dit_shd.core.errors import UserError
from dit_shd.core.places import Place

SD_VAE = "hub:stabilityai/sd-vae-ft-mse"


@dataclass(frozen=True)
class EncodeConfig:
    """What to encode and how."""

    images: Place = option(
        REQUIRED,
        "folder of images (in class folders; for pipeline= with captions beside them), tars, Parquet files, npz (arr_0 "
        "uint8 [n,y,x,c], arr_1 labels), or a Hugging Face dataset (a folder of save_to_disk, or hub:OWNER/NAME)",
    )
    out: Path = option(REQUIRED, "the folder of latents; the same command again goes on there")
    size: int = option(256, "the images' side after the ADM centre crop", range=(1, 8192))
    buckets: bool = option(
        False,
        "crop each image to the height and width, of about size x size pixels in all, that are nearest to its shape "
        "(with a pipeline); a batch of training is of one of them",
    )
    vae: Place | None = option(
        SD_VAE, "autoencoder: folder or hub:OWNER/NAME; pixels, or null: the pixels are the latents"
    )
    pipeline: Place | None = option(
        None,
        "text-to-image pipeline (folder, hub:OWNER/NAME or asset:NAME): its autoencoder, and embeddings of captions",
    )
    caption_column: str | None = option(
        None, "of tables and metadata files, or a key in IMAGE.json (not IMAGE.txt); empty: text, caption, prompt, ..."
    )
    text_tokens: int | None = option(
        None,
        "tokens of a caption (max_sequence_length of the pipeline's call); empty: what the pipeline's "
        "transformer is recorded to have learned, or the pipeline's default",
        range=(1, 32768),
    )
    text_dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "of the embeddings")
    adapter: str | None = option(None, "somebody's own adapter of the pipeline's transformer, with dots; empty: ours")
    flips: bool | None = option(None, "encode mirrored images, too; empty: yes, but not with captions")
    dtype: Literal["float32", "float16"] = option(
        "float32", "of the shards; ImageNet at 256 takes 84 GB in float32, half of that in float16"
    )
    precision: Literal["no", "bf16"] = option("no", "autocast of the autoencoder")
    split: str | None = option(
        None, "of tables, by their names (train if left out); or of folders called train, val, ..."
    )
    subset: str | None = option(None, "of a dataset with several (configs, folders of Parquet files)")
    image_column: str | None = option(
        None, "of tables; empty: image, img, jpg, ...; of tars the suffix, as jpg, where a key has several images"
    )
    label_column: str | None = option(None, "of tables and metadata files; empty: label, labels, cls, ..., or none")
    classes: dict[str, int] | None = option(
        None, "number of each class by its name, as {cat: 281, dog: 207} for a teacher's; empty: in their order"
    )
    follow_links: bool = option(False, "follow links that lead out of the folder of images")
    batch_size: int = option(32, "images in one forward of the autoencoder", range=(1, 65536))
    shard_size: int = option(1024, "images in one shard: what a kill costs at most", range=(1, 2**20))
    workers: int = option(4, "threads of each process that decode images", range=(1, 1024))

    def check(self) -> None:
        """Check that the values are in their ranges, and fit each other.

        Raises:
            UserError: Naming the key, the range and the value.
        """
        check_ranges(self)
        if self.pipeline is not None and self.vae != SD_VAE:
            raise UserError(f"vae: the autoencoder is the pipeline's; leave vae={self.vae} out")
        if self.pipeline is None:
            for key in ("caption_column", "text_tokens", "text_dtype", "adapter"):
                if getattr(self, key) != getattr(type(self), key):
                    raise UserError(f"{key}: is of captions, which are encoded by a pipeline; give pipeline=...")
        if self.buckets and self.pipeline is None:
            raise UserError("buckets: are for text-to-image models, which take any height and width; give pipeline=...")
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"out: wanted a folder, found a file at '{self.out}'")
