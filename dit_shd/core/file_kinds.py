"""The kind of a file by its contents, for errors: a name's suffix may be wrong."""

import zipfile
from pathlib import Path

SAFETENSORS, TORCH, PICKLE = "a safetensors file", "a PyTorch file", "a pickle"
NPZ, PARQUET = "an npz file", "a Parquet file"
HEADS = (
    (b"\x93NUMPY", "an npy file (one array; wanted numpy.savez)"),
    (b"version https://git-lfs", "a Git LFS pointer (git lfs pull fetches the file)"),
    (b"PAR1", PARQUET),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x1f\x8b", "a gzip file (unpack it)"),
    (b"%PDF", "a PDF"),
    (b"Rar!", "a RAR file (unpack it)"),
    (b"7z\xbc\xaf", "a 7z file (unpack it)"),
    (b"\x80", PICKLE),
)


def file_kind(path: Path) -> str:
    """The kind of a file, in words; one of the constants above for the kinds that dit_shd reads."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})"
    if not head:
        return "an empty file"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return SAFETENSORS
    if head[:4] == b"PK\x03\x04" or zipfile.is_zipfile(path):
        return _zip_kind(path)
    kind = next((words for start, words in HEADS if head.startswith(start)), None)
    if kind is not None:
        return kind
    if head[257:262] == b"ustar":
        return "a tar file (unpack it)"
    try:
        text = head.decode() if len(head) < 512 else head[:-3].decode("utf-8", "strict")
    except UnicodeDecodeError:
        text = None
    if text is None or "\0" in text:
        return "data of no kind that is known here"
    if text.lstrip().lower().startswith(("<!doctype html", "<html")):
        return "a web page (a download that went wrong?)"
    return f"text ({' '.join(text.split())[:30]!r} ...)"


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return "a damaged zip file (cut short?)"
    if any(name.endswith("/data.pkl") for name in names):
        return TORCH
    if any(name.endswith(".npy") for name in names):
        return NPZ
    return f"a zip file of other things ({', '.join(names[:2]) or 'nothing'})"
