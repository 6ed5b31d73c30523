"""Sample images of a run or model: into one npz (arr_0 uint8 NHWC, arr_1 labels), or a folder of png; and a grid.

dit-shd sample runs/shd count=100 steps=50 labels=balanced   runs/shd/samples_100_seed0.npz
dit-shd sample runs/shd labels=3,3,7 out=digits/             three images, as png
dit-shd sample RUN prompts=prompts.txt                       of a text-to-image model, by its pipeline's own class
"""

from typing import ClassVar

from dit_shd.cli.commands import Command
from dit_shd.core.launcher import is_first_process
from dit_shd.diffusion.generation import sample_to_file, words
from dit_shd.diffusion.prompt_generation import sample_prompts
from dit_shd.diffusion.sample_config import SampleConfig


class Sample(Command[SampleConfig]):
    """Sample images of a trained model."""

    config = SampleConfig
    divides = True
    words: ClassVar = {"run": "RUN"}
    words_help = "run or model folder"
    places: ClassVar = {"run": ("model", "RUN")}
    synonyms: ClassVar = {
        "n": "count",
        "num": "count",
        "num_samples": "count",
        "num_images": "count",
        "n_samples": "count",
        "num_fid_samples": "count",
        "num_inference_steps": "steps",
        "num_sampling_steps": "steps",
        "sampling_steps": "steps",
        "cfg": "guidance",
        "cfg_scale": "guidance",
        "guidance_scale": "guidance",
        "label": "labels",
        "classes": "labels",
        "class_labels": "labels",
        "sampler": "solver",
        "scheduler": "solver",
        "output": "out",
        "output_dir": "out",
        "outdir": "out",
        "model": "run",
        "ckpt": "run",
        "bs": "batch_size",
        "dtype": "precision",
        "ema": "averages are folders of the run: dit-shd sample runs/x/student_ema_0.999",
    }

    def run(self, config: SampleConfig) -> None:
        out = sample_to_file(config) if config.prompts is None else sample_prompts(config)
        if is_first_process():  # of several under a launcher
            print(words(config, out))
