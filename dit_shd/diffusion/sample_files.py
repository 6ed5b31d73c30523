"""Where samples go: an npz or a folder, grid and settings beside it, the shards of one that is being made."""

from pathlib import Path

from dit_shd.core.errors import UserError
from dit_shd.core.json_files import read_object
from dit_shd.core.pretrained import model_folder
from dit_shd.data.sampled_weights import are_of_earlier
from dit_shd.diffusion.sample_config import SampleConfig

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
"""Ends of names that are no output's: images go into an npz or a folder."""
MERGED = "merged"
"""Among the shards: an empty file that says that merged.npz, .png and .json are complete."""


def output_path(config: SampleConfig) -> Path:
    """Where the images go: a name that ends in / is that of a folder of png, any other that of an npz.

    Raises:
        UserError: A name of neither, or that of a folder that is there without its /.
    """
    if config.out is not None:
        out = Path(config.out)
        if out.name in ("", ".."):
            raise UserError(f"out: wanted the name of an npz or FOLDER/, found '{config.out}'")
        if out.suffix.lower() in PICTURES:
            raise UserError(f"out: wanted FILE.npz, or FOLDER/ for a png of each image, found '{config.out}'")
        if not str(config.out).endswith("/"):
            if out.is_dir() and out.suffix != ".npz":
                ways = f"{out}/NAME.npz, {out}.npz beside it, or {out}/ for a png of each image"
                raise UserError(f"out: {out} is a folder; wanted {ways}")
            return out if out.suffix == ".npz" else out.with_name(out.name + ".npz")
        if config.vae is None:
            raise UserError(f"out: {config.out} is a folder for png, and vae=null keeps latents; wanted FILE.npz")
        if out.suffix == ".npz":
            raise UserError(f"out: wanted FILE.npz, or a FOLDER/ of another name, found '{config.out}'")
        return out
    folder = Path(config.run) if Path(config.run).is_dir() else Path(".")
    return folder / f"samples_{config.images}_seed{config.seed}.npz"


def parts_of(out: Path) -> Path:
    """The folder of shards of an npz that is being made."""
    return out.with_name(out.name + ".parts")


def lock_file(out: Path) -> Path:
    """What is locked while an npz is being made."""
    return out.with_name(f".{out.name}.lock")


def places_of(out: Path) -> dict[str, Path]:
    """Where each of the results goes, by its suffix; that of a folder of png is empty."""
    if out.suffix == ".npz":
        return {suffix: out.with_suffix(suffix) for suffix in (".json", ".png", ".npz")}
    return {".json": out.with_name(f"{out.name}.json"), ".png": out.with_name(f"{out.name}.png"), "": out}


def refuse_existing(out: Path, force: bool, run: str) -> None:
    """Refuse to write samples where there are some, or files of others.

    Args:
        out: The npz or folder.
        force: Whether samples may be replaced.
        run: What is sampled.

    Raises:
        UserError: Naming the file that is there.
    """
    if (parts_of(out) / MERGED).exists():  # being published: some of the files are there already
        return
    twin, beside = out.with_suffix("") if out.suffix == ".npz" else Path(f"{out}.npz"), places_of(out)[".json"]
    if twin.exists() and beside.exists() and not out.exists():
        raise UserError(f"{beside}: is of {twin}, and would be of {out}, too; choose another out=FILE")
    for file in places_of(out).values():
        if file == out and out.suffix != ".npz" and file.is_dir() and not any(file.iterdir()):
            continue  # an empty folder is as good as none
        if file.is_dir() or (file.exists() and not force):
            what, remedy = "is there already", " or say force=true"
            if _of_earlier_weights(places_of(out)[".json"], run):
                what, remedy = f"{what}, of earlier weights of this run", ", or force=true replaces it"
            raise UserError(f"{file}: {what}; choose another out=FILE{'' if file.is_dir() else remedy}")
        if file != out and file.exists() and "model_sha256" not in (read_object(places_of(out)[".json"]) or {}):
            raise UserError(
                f"{file}: is there already, and nothing says that dit-shd sample wrote it, so that it is not replaced; "
                "choose another out=FILE, or remove it"
            )


def _of_earlier_weights(settings: Path, run: str) -> bool:
    """Whether samples with these settings are of weights that what is sampled had before."""
    folder = model_folder(Path(run)) if run else None
    return folder is not None and are_of_earlier(settings, read_object(settings) or {}, Path(run), [folder])
