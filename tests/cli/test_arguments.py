"""Words of a command line: in any order, and refused with what they should have been, before torch is imported."""

import subprocess
import sys

import pytest

from dit_shd.cli.arguments import split, values_of
from dit_shd.cli.program import main
from dit_shd.cli.specification import specification
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugin_source import plugin_names
from dit_shd.evaluation.evaluate import EvaluateConfig
from dit_shd.training.config import TrainConfig


def values(*words):
    line = split(words)
    return values_of(line, specification(line.command))


def test_words_and_options_stand_in_any_order():
    line = split(["train", "a=1", "--trust", "mine", "x.yaml", "--trust=other", "b.c=d=e"])
    assert (line.command, line.names, line.assignments) == ("train", ["x.yaml"], ["a=1", "b.c=d=e"])
    assert line.trusted == ["mine", "other"]
    assert split(["sample", "--help", "steps"]).help == "steps"
    assert split(["--help"]).help == "" and split(["train", "x", "-h", "a=1"]).help == ""


def test_a_word_may_be_given_by_its_key():
    for words in (["a.npz", "reference=digits"], ["samples=a.npz", "reference=digits"]):
        assert make(EvaluateConfig, values("evaluate", *words)).files() == ["a.npz"]
    for words, message in (
        (["b.npz", "samples=a.npz"], "'b.npz': wanted key=value"),
        (["reference=digits"], r"wanted SAMPLES\.\.\."),
    ):
        with pytest.raises(UserError, match=message):
            values("evaluate", *words)


def test_of_a_key_that_is_given_twice_the_last_counts_and_it_is_said(caplog):
    """As a script has it that puts what it is given behind its defaults."""
    found = values("sample", "run", "steps=3", "count=2", "steps=4")
    assert (found["steps"], found["count"]) == (4, 2)
    assert caplog.messages == ["steps: given 2 times; steps=4 is taken"]


@pytest.mark.parametrize(
    ("words", "key", "outer"),
    [
        (("optimizer.lr=1e-4", "optimizer={name: adamw}"), "optimizer.lr", "optimizer"),
        (("task.label_dropout=0.5", "task=flow_matching"), "task.label_dropout", "task"),
        (("losses.1.weight=5", "losses=[{name: output}]"), "losses.1.weight", "losses"),
    ],
)
def test_a_key_before_the_value_that_it_is_inside_of_is_dropped_and_it_is_said(words, key, outer, caplog):
    values("train", "digits_shd", *words)
    assert caplog.messages == [f"{key}: given before {outer}=, which replaces it; put it after that, or into its value"]
    caplog.clear()
    values("train", "digits_shd", "task=flow_matching", "task.label_dropout=0.5")
    assert not caplog.messages


def test_text_may_have_a_colon():
    prompts = "two digits: four and seven", "a: b: c", "plain", '"null"'
    found = [values("inspect", "asset:captioned_digits", f"prompt={text}")["prompt"] for text in prompts]
    assert found == ["two digits: four and seven", "a: b: c", "plain", "null"]
    assert values("inspect", "asset:captioned_digits", "prompt=null", "call={a: 1}")["prompt"] is None


def test_text_may_have_what_yaml_takes_for_a_comment():
    """Folders are called `try #2`; all of them had been one folder, runs/try."""
    assert values("train", "digits_shd", "run=runs/try #2")["run"] == "runs/try #2"
    assert values("inspect", "asset:captioned_digits", "prompt=&a")["prompt"] == "&a"
    assert values("train", "digits_shd", "run='a b'")["run"] == "a b"


def test_whole_numbers_are_decimal():
    """YAML 1.1 takes 010 for 8, so that seed=008 and seed=010 were one seed, and 1:30 for 90."""
    for text in ("010", "008", "1:30"):
        assert values("train", "digits_shd", f"seed={text}")["seed"] == text  # which is cast later on
    assert values("train", "digits_shd", "seed=0x10", "steps=1_000", "optimizer.lr=1e-3")["seed"] == 16
    assert make(TrainConfig, {"seed": "010"}, "config").seed == 10


def test_misspelt_plugins_are_refused_before_anything_is_built():
    """A dry run builds no data, and had passed them over."""
    for word, known in (("data=digts", "digits"), ("losses=[shdd]", "shd")):
        with pytest.raises(UserError, match=f"no plug-in called .* did you mean '{known}'"):
            values("train", "digits_shd", word)


def test_folders_whose_names_look_like_assignments_are_names(tmp_path, monkeypatch):
    """Sweeps call runs lr=1e-3; no command took them."""
    monkeypatch.chdir(tmp_path)
    for name in ("lr=1e-3", "steps=3"):
        (tmp_path / name).mkdir()
    assert values("show", "b", "lr=1e-3", "c")["runs"] == ["b", "lr=1e-3", "c"]
    found = values("sample", "lr=1e-3", "steps=3")
    assert (found["run"], found["steps"]) == ("lr=1e-3", 3)
    with pytest.raises(UserError, match="unknown key 'lr'"):
        values("sample", "run", "lr=1e-4")


@pytest.mark.parametrize("word", ["from=", "teacher= ", "data.path=", "steps="])
def test_nothing_after_the_sign_is_no_null(word):
    """As of from=$RUN where there is no such variable, which had begun at random weights without a word."""
    with pytest.raises(UserError, match="=: wanted a value after it, found nothing; none is"):
        values("train", "digits_shd", word)
    assert values("inspect", "asset:captioned_digits", "prompt=''")["prompt"] == ""


def test_text_of_plugins_and_of_several_is_text_as_well():
    """YAML has a number in 2024_01_01, which would be another folder."""
    words = ["data={name: npz}", "data.path=2024_01_01", "losses.1.layers=yes"]
    found = values("train", "digits_shd", *words, "teacher=2024_01_01")
    assert (found["teacher"], found["data"]) == ("2024_01_01", {"name": "npz", "path": "2024_01_01"})
    assert found["losses"][1]["layers"] == "yes"
    assert values("train", "digits_shd", "data=npz", "data.path=1e3")["data"]["path"] == "1e3"
    several = values("train", "digits_shd", "teacher={a: 2024_01_01, b: x}")["teacher"]
    assert several == {"a": "2024_01_01", "b": "x"}
    assert values("train", "digits_shd", "teacher=null")["teacher"] is None
    assert values("sample", "x", "steps=1_000")["steps"] == 1000


def test_an_experiment_is_a_config_by_its_name_and_by_its_path_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = values("train", "digits_shd", "steps=7", "optimizer.lr=1")
    assert by_name["steps"] == 7 and by_name["optimizer"]["lr"] == 1 and by_name["batch_size"] == 32
    assert by_name == values("train", "optimizer.lr=1", "configs/digits_shd.yaml", "steps=7")
    assert values("train", "deit_ti_alone")["student"]["model"] == "deit_tiny_patch16_224"


def test_a_run_folder_is_a_config_that_goes_on(tmp_path):
    (tmp_path / "config.yaml").write_text("run: somewhere/else\nsteps: 3\n")
    assert values("train", str(tmp_path), "steps=5") == {"run": str(tmp_path), "steps": 5}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "digits_sdh"], "or the name of an experiment, found nothing, did you mean digits_shd"),
        (["train"], "wanted CONFIG"),
        (["train", "digits_shd", "learning_rate=1"], "learning_rate: here it is optimizer.lr"),
        (["train", "digits_shd", "device=cuda"], "the GPU is used if there is one"),
        (["train", "digits_shd", "num_gpus=8"], "accelerate launch --num_processes N -m dit_shd train"),
        (["train", "digits_shd", "epochs=8"], "a run is measured in steps"),
        (["train", "digits_shd", "--learning-rate", "1e-4"], "settings are written key=value here: optimizer.lr=1e-4"),
        (["train", "digits_shd", "--batch-size=8"], "key=value here: batch_size=8"),
        (["train", "digits_shd", "--compile"], "key=value here: compile=true"),
        (["train", "digits_shd", "--stepz", "8"], "key=value here: steps=8"),
        (["train", "digits_shd", "--zzz"], "listed by dit-shd train --help"),
        (["train", "--config", "x.yaml"], "the config is a word of its own: dit-shd train CONFIG"),
        (["train", "digits_shd", "optimizer.lrr=1"], "config.optimizer: unknown key 'lrr', did you mean 'lr'?"),
        (["train", "digits_shd", "losses.1.weigth=1"], "losses.1: unknown key 'weigth', did you mean 'weight'?"),
        (["evaluate", "x.npz", "reference=y.npz", "metrics=[fid]"], "called 'fid', did you mean 'frechet'?"),
        (["train", "digits_shd", "student.heads=1"], "student: unknown key 'heads'"),
        (["train", "digits_shd", "student.like=teacher"], "beside student.name=mdt, which has no such key; to replace"),
        (["train", "digits_shd", "task.mask_ration=1"], "task: unknown key 'mask_ration'"),
        (["sample", "x", "cfg_scale=4"], "cfg_scale: here it is guidance"),
        (["sample", "x", "num_samples=4"], "num_samples: here it is count"),
        (["trian", "x"], "no command called 'trian', did you mean 'train'?"),
        (["--steps", "3"], "wanted a command first"),
        (["train", "--help", "sdh"], "no key or plug-in of this name, did you mean shd?"),
        (["convert", "a"], "wanted FILE and OUT"),
    ],
)
def test_what_is_mistyped_is_answered_before_torch_is_imported(words, message):
    """In one process for all cases: sys.modules of a fresh one stays without torch."""
    code = (
        "import sys\nfrom dit_shd.cli.program import main\n"
        "code = main(sys.argv[1:]); assert 'torch' not in sys.modules, 'torch'\nsys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "digits_shd", "losses={shd: 1}"], r"losses: wanted a list, found \{'shd': 1\}"),
        (["evaluate", "a.npz", "reference=b.npz", "metrics={kid: 1}"], r"metrics: wanted a list, found \{'kid': 1\}"),
    ],
)
def test_keys_where_plugins_are_wanted_are_refused_in_a_line(words, message):
    with pytest.raises(UserError, match=message) as error:
        make(TrainConfig if words[0] == "train" else EvaluateConfig, values(*words))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("data.name=latents", "data.path=lat"),
            "data: 'split' is the config's, and latents has no such key; to name another give it whole: "
            "'data={name: latents, path: lat}'",
        ),
        (
            ("data.path=lat",),
            "data: digits of the config has no key 'path' (its keys: split); it is one of emoji, fashion, images, "
            "latents, mnist, npz, text, text_buckets, text_latents; to name another give it whole: "
            "'data={name: NAME, path: lat}'",
        ),
        (
            ("student.name=dit", "student.num_layers=2"),
            "student: 'decode_layer' is the config's, and dit has no such key; to name another give it whole: "
            "'student={name: dit, num_layers: 2}'",
        ),
        (("data.spilt=all",), "data: unknown key 'spilt', did you mean 'split'? Known: split"),
        (("data={name: digits, path: x}",), "data: unknown key 'path'. Known: split"),
    ],
)
def test_another_plugin_in_the_place_of_the_config_s_is_given_whole(words, message):
    with pytest.raises(UserError) as refused:
        values("train", "digits_teacher", *words)
    assert str(refused.value) == message
    assert values("train", "digits_teacher", "data={name: npz, path: x}")["data"] == {"name": "npz", "path": "x"}


def test_a_key_of_an_earlier_version_and_of_somebody_elses_plugin_pass():
    assert values("train", "digits_shd", "mask_ratio=null")["mask_ratio"] is None
    assert values("train", "digits_shd", "losses.0.name=somebodys.loss", "losses.0.foo=1")["losses"][0]["foo"] == 1
    assert values("train", "digits_shd", "from=runs/x")["from"] == "runs/x"


def test_every_foreign_word_has_an_answer():
    """A synonym is not a key itself, and what it stands for is a key or advice."""
    for name in ("train", "sample", "encode"):
        spec = specification(name)
        keys = {key.name for key in spec.keys}
        assert not spec.synonyms.keys() & keys
        for word in spec.synonyms:
            with pytest.raises(UserError, match=rf"^{word}: .{{8}}") as caught:
                values_of(split([name, *({"train": ["digits_shd"], "sample": ["x"]}.get(name, [])), f"{word}=1"]), spec)
            assert "{" not in str(caught.value).replace("{name: ", "")


def test_help_of_a_plugin_has_its_keys_types_and_defaults(capsys):
    assert main(["train", "--help", "shd"]) == 0
    text = capsys.readouterr().out
    assert "method=pairwise  [pairwise | joint | per_query | constant | hard]" in text
    assert "temperature=1.0  [number] T_a of both maps" in text
    assert main(["train", "--help", "mdt"]) == 0
    assert "decode_layer" in capsys.readouterr().out
    assert main(["train", "--help", "optimizer"]) == 0
    assert "name=adan  [adan | adamw | adamw8bit]" in capsys.readouterr().out
    assert main(["train", "--help", "losses"]) == 0
    assert "shd: Sum over layers" in capsys.readouterr().out


def test_help_of_evaluate_has_examples(capsys):
    assert main(["evaluate", "--help"]) == 0
    assert "dit-shd evaluate samples.npz reference=" in capsys.readouterr().out


def test_help_has_headings_and_choices(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert " Speed and memory:\n  precision=no  [no | bf16 | fp16]" in text
    assert f"losses: {', '.join(plugin_names('dit_shd.distillation.losses'))}" in text


def test_a_package_of_the_working_folder_is_trusted_by_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_losses.py").write_text(
        "from dit_shd.distillation.losses import Loss, Term\n\n\nclass Mine(Loss):\n    '''Mine.'''\n\n"
        "    def term(self, student, teacher, batch):\n"
        "        return Term((student.prediction * 0).flatten(1).sum(1))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    words = ["train", "digits_shd", "losses=[{name: my_losses.Mine}]", "steps=1", "batch_size=2", "run=r"]
    assert main(words) == 2
    assert "--trust my_losses" in capsys.readouterr().err
    assert main([*words[:2], "--trust", "my_losses", *words[2:], "ema=0.5"]) == 0


@pytest.mark.parametrize("text", ["2024_01_01", "2024-01-01", "010", "1e3", "yes", "1:30", "plain"])
def test_text_and_paths_are_what_was_written(text):
    """YAML reads 20240101, a date, 8, 1000.0, true and 90."""
    assert values("sample", "runs/x", f"out={text}")["out"] == text
    assert values("compare", "a", "b", f"names=[{text},b]", f"out={text}")["names"] == [text, "b"]
    assert values("sample", "runs/x", "vae=null", "count=1_000") == {"run": "runs/x", "vae": None, "count": 1000}


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        (["train", "--help", "evaluation"], ["of diffusion (task):", "    count=1000  [whole number] images;"]),
        (["train", "--help", "task.evaluation"], ["of language_modeling (task):", "    batch_size=16  [whole"]),
        (["train", "--help", "timestep_density"], ["of flow_matching (task):", "    mean=0.0  [number, -20 to 20]"]),
        (["train", "--help", "from"], ["  from_run=null  ["]),
        (["study", "--help", "grid"], ["  grid=needed  ["]),
        (["study", "--help"], ["keys of STUDY.yaml:", "  evaluators={}  [", "    reference=''  [text] images"]),
    ],
)
def test_help_reaches_keys_inside_of_keys(argv, lines, capsys):
    assert main(argv) == 0
    printed = capsys.readouterr().out.splitlines()
    places = [next(i for i, line in enumerate(printed) if line.startswith(wanted)) for wanted in lines]
    assert places == sorted(places)
