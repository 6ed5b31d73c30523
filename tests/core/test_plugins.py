"""The contract of plug-ins: a loss, a task, a dataset, a metric and a command of 15 lines, in a package of one's own.

Nothing but the base classes is known of dit_shd; each is used by its dotted name, from a package that is trusted.
"""

import sys

import pytest
import yaml
from accelerate.state import AcceleratorState
from language import lines
from plugin_folders import plugin_folders
from runs import rows

import dit_shd
from dit_shd.cli import program
from dit_shd.core import plugins
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS
from dit_shd.diffusion.adapters import adapter_of
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics import METRICS
from dit_shd.evaluation.scoring import compute_metrics
from dit_shd.models.families import FAMILIES
from dit_shd.models.loading import load
from dit_shd.tasks import TASKS

PACKAGE = {
    "loss": """
from dit_shd.distillation.losses import Loss, Term


class Nearer(Loss):
    \"\"\"The student's prediction is as large as the teacher's, where the data are bright.\"\"\"

    fields = frozenset({"brightness"})

    def __init__(self, weight: float = 1.0, power: int = 2):
        super().__init__(weight)
        self.power = power

    def term(self, student, teacher, batch):
        sizes = [x.prediction.abs().flatten(1).mean(1) for x in (student, teacher)]
        return Term(batch.data["brightness"] * (sizes[0] - sizes[1]).abs() ** self.power)
""",
    "tasks": """
from dit_shd.diffusion.sample_evaluation import SampleEvaluation
from dit_shd.tasks import Output
from dit_shd.tasks.diffusion import PLAIN, Diffusion


class Halved(Diffusion):
    \"\"\"Noise prediction with half of the error.\"\"\"

    def __init__(self, share: float = 0.5, evaluation: SampleEvaluation = PLAIN):
        super().__init__(mask_ratio=None, min_snr_gamma=None, evaluation=evaluation)
        self.share = share

    def losses(self, output: Output, batch):
        return {"halved": self.share * super().losses(output, batch)["noise"]}
""",
    "data": """
from dit_shd.core.rng import Draws
from dit_shd.data.datasets.digits import DigitsDataset


class Bright(DigitsDataset):
    \"\"\"Digits, and how bright each is.\"\"\"

    fields = DigitsDataset.fields | {"brightness"}

    def batch(self, indices, draws: Draws):
        sample = super().batch(indices, draws)
        return {**sample, "brightness": (sample["latents"] + 1).flatten(1).mean(1)}
""",
    "metrics": """
from dit_shd.evaluation.metrics import Metric


class MeanGap(Metric):
    \"\"\"How far the means of two sets of features are apart.\"\"\"

    minimum = 1

    def compute(self, samples, reference):
        gap = samples.statistics.mean - reference.statistics.mean
        return {"mean_gap": float(gap.square().sum().sqrt())}
""",
    "family": """
from dit_shd.models.families.dit import DiT


class Mine(DiT):
    \"\"\"A DiT, by another name.\"\"\"
""",
    "commands": """
\"\"\"Say hello.\"\"\"

from dataclasses import dataclass

from dit_shd.cli.commands import Command
from dit_shd.core.config import option


@dataclass(frozen=True)
class Config:
    to: str = option("nobody", "who is greeted")


class Hello(Command[Config]):
    config = Config
    words = {"to": "NAME"}

    def run(self, config):
        print(f"hello {config.to}")
""",
}
EVALUATION = {
    "count": 4,
    "steps": 2,
    "reference": "digits:validation",
    "features": "digits",
    "evaluate": {"metrics": ["my_package.metrics.MeanGap"]},
}
CONFIG = {
    "task": {"name": "my_package.tasks.Halved", "evaluation": EVALUATION},
    "data": {"name": "my_package.data.Bright"},
    "student": {"name": "dit", "sample_size": 28, "patch_size": 7, "in_channels": 1, "num_layers": 1},
    "teacher": "asset:digits_teacher",
    "check_teacher": "no",
    "losses": [{"name": "my_package.loss.Nearer", "power": 1}],
    "steps": 2,
    "batch_size": 4,
    "log_every": 1,
    "checkpoint_every": 2,
    "ema": 0.5,
    "validate_every": 2,
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package, which can be imported and which nobody trusts yet."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()
    for name, text in PACKAGE.items():
        (tmp_path / "my_package" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_trusted", set())
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        del sys.modules[name]


def test_plugins_of_ones_own_train_and_evaluate_by_their_names(package, capsys):
    """Nothing of them is listed anywhere; the same command again resumes."""
    (package / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "run": str(package / "run")}))
    words = ["train", "--trust", "my_package", str(package / "config.yaml")]
    assert program.main(words) == 0, capsys.readouterr().err
    logged = rows(package / "run")
    assert {"plain/halved", "plain/loss", "loss"} <= logged[0].keys()
    for row in logged:
        assert row["loss"] == pytest.approx(row["plain/halved"] + row["plain/loss"], rel=1e-5)
    saved = yaml.safe_load((package / "run" / "config.yaml").read_text())
    assert saved["losses"] == [{"name": "my_package.loss.Nearer", "power": 1, "weight": 1.0}]
    assert (saved["task"]["name"], saved["task"]["share"]) == ("my_package.tasks.Halved", 0.5)
    (figures,) = rows(package / "run", "evaluations.jsonl")
    assert figures["mean_gap"] > 0
    AcceleratorState._reset_state(reset_partial_state=True)
    assert program.main([*words, "steps=3"]) == 0
    assert [row["step"] for row in rows(package / "run")] == [1, 2, 3]


def test_a_family_of_ones_own_is_read_wherever_a_model_is(package, capsys):
    """It had trained to its end, and then no command knew its class."""
    student = {**CONFIG["student"], "name": "my_package.family.Mine"}
    plain = {
        "task": {"name": "diffusion", "mask_ratio": None},
        "data": {"name": "digits"},
        "student": student,
        "ema": 0,
    }
    values = {**plain, "steps": 1, "batch_size": 2, "run": str(package / "run")}
    (package / "config.yaml").write_text(yaml.safe_dump(values))
    assert program.main(["train", "--trust", "my_package", str(package / "config.yaml")]) == 0, capsys.readouterr().err
    teacher = {**values, "teacher": str(package / "run"), "losses": ["output"], "run": str(package / "second")}
    for number, words in enumerate((["--trust", "my_package"], [])):
        (package / "config.yaml").write_text(yaml.safe_dump({**teacher, "check_teacher": "no"}))
        AcceleratorState._reset_state(reset_partial_state=True)
        plugins._trusted.clear()
        sample = ["sample", str(package / "run"), "count=2", "steps=2", f"out={package / str(number)}.npz", *words]
        assert program.main(sample) == (0 if words else 2), capsys.readouterr().err
        assert program.main(["train", str(package / "config.yaml"), *words]) == (0 if words else 2)
    assert "'my_package.family.Mine' would import code of 'my_package'; if you trust it" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["diffusion", "classification", "language_modeling"])
def test_a_dataset_says_which_samples_a_step_has(task, tmp_path):
    """A sampler of one's own had been passed over by every task but one."""

    gray = {"in_chans": 1, "img_size": 28, "mean": [0.13], "std": [0.31], "num_classes": 10}
    gray |= {"options": {"patch_size": 7, "embed_dim": 24, "depth": 1, "num_heads": 3}}
    of_text = Plugin("text", {"path": lines(tmp_path), "length": 16, "document": "line"})
    models = {
        "diffusion": lambda: load("asset:digits_teacher"),
        "classification": lambda: FAMILIES.build(Plugin("timm", {"model": "deit_tiny_patch16_224", **gray})),
        "language_modeling": lambda: None,
    }
    data = DATASETS.build(of_text if task == "language_modeling" else Plugin("digits"))
    made = TASKS.build(Plugin(task))
    made.use(data, models[task]())
    data.indices = lambda draws: draws.indices(len(data)) % 3
    (batch, *_) = made.draw(Draws(0, 0, range(8), 8))
    assert set(batch.indices.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("name", ["my_package.my_loss", "", "./my_package", 3])
def test_what_is_trusted_is_a_package(name):
    """A dotted name had been taken, and trusted nothing."""
    before = plugins.trusted()
    with pytest.raises(UserError, match=r"^trust: wanted the name of a package, as my_package, found "):
        dit_shd.trust(name)
    assert plugins.trusted() == before


def test_two_metrics_that_give_one_figure_and_figures_that_are_not_finite_are_refused():
    """The later one's had been the figure; results files have no NaN."""
    metric = METRICS.build(Plugin("frechet"))
    sets = FeatureSet.__new__(FeatureSet), FeatureSet.__new__(FeatureSet)

    class Twin(type(metric)):
        def details(self, samples, reference):
            return {"FD(random)": 0.0}, {}

    with pytest.raises(UserError, match=r"metrics: twin: gives FD\(random\), which another metric gives, too"):
        compute_metrics([(Plugin("frechet"), Twin()), (Plugin("twin"), Twin())], *sets)
    Twin.details = lambda self, samples, reference: ({"fine": 1.0, "odd": float("nan")}, {})
    with pytest.raises(UserError, match="metrics: twin: wanted finite figures, found odd=nan"):
        compute_metrics([(Plugin("twin"), Twin())], *sets)


def test_a_command_of_ones_own_runs_and_explains_its_keys(package, capsys):
    assert program.main(["my_package.commands.Hello", "you", "--trust", "my_package"]) == 0
    assert capsys.readouterr().out == "hello you\n"
    assert program.main(["my_package.commands.Hello", "--help", "--trust", "my_package"]) == 0
    assert "to=nobody  [text] who is greeted" in capsys.readouterr().out


def test_the_config_of_a_command_may_be_imported_from_a_file_beside_it(package, capsys):
    """`from .greeting import Config` was read as the module `greeting` of nobody, in a traceback."""
    head, body = PACKAGE["commands"].split("class Hello")
    config = head[head.index("@dataclass") :]
    (package / "my_package" / "greeting.py").write_text(head)
    (package / "my_package" / "short.py").write_text(
        head.replace(config, "from .greeting import Config\n\n\n") + "class Hello" + body
    )
    assert program.main(["my_package.short.Hello", "you", "--trust", "my_package"]) == 0
    assert capsys.readouterr().out == "hello you\n"
    assert program.main(["my_package.short.Hello", "--help", "--trust", "my_package"]) == 0
    assert "to=nobody  [text] who is greeted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "config.yaml"], "'my_package.data.Bright' would import code of 'my_package'; if you trust it"),
        (["my_package.commands.Hello"], "'my_package.commands.Hello' would import code of 'my_package'"),
        (["my_package.commands.Hullo", "--trust", "my_package"], "cannot import 'my_package.commands.Hullo'"),
        (["my_package.data.Bright", "--trust", "my_package"], "is not a subclass of dit_shd.cli.commands.Command"),
    ],
)
def test_a_package_that_nobody_trusts_is_not_imported(package, words, message, capsys, monkeypatch):
    monkeypatch.chdir(package)
    (package / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert program.main(words) == 2
    assert message in capsys.readouterr().err
    if "--trust" not in words:
        assert not [name for name in sys.modules if name.split(".")[0] == "my_package"]


def test_a_plugin_that_lacks_what_its_base_asks_for_is_refused_in_a_line(package):
    """A TypeError of abc had been its traceback."""
    (package / "my_package" / "short.py").write_text(
        "from dit_shd.diffusion.adapters import Adapter\n\n\nclass Short(Adapter):\n    arguments = None\n"
    )
    dit_shd.trust("my_package")
    with pytest.raises(UserError, match=r"'my_package\.short\.Short' lacks text_widths, which every Adapter has"):
        adapter_of("SomeTransformer", "my_package.short.Short")


@pytest.mark.parametrize("folder", plugin_folders(), ids=lambda folder: folder.kind)
def test_an_unknown_name_lists_what_exists(folder):
    with pytest.raises(UserError, match=f"{folder.kind}: no plug-in called 'xyz'.* Available: ") as error:
        folder.find("xyz")
    assert str(error.value).endswith(f"Available: {', '.join(folder.names())}.")
    assert len(folder.names()) > 1
