"""`dit-shd publish`: which calls of the hub's API it makes, and what it refuses before any."""

import json
import shutil

import huggingface_hub
import pytest
from huggingface_hub import ModelInfo
from huggingface_hub.utils import filter_repo_objects
from local_hub import local_hub
from prompt_students import prompt_student
from safetensors.torch import load_file, save_file
from small_families import same
from tiny_pipelines import write_pipeline

from dit_shd.cli.program import main
from dit_shd.core.plugins import Plugin
from dit_shd.core.pretrained import asset
from dit_shd.models import loading
from dit_shd.models.families import FAMILIES


@pytest.fixture
def calls(monkeypatch) -> list:
    """The calls of a hub that takes everything."""
    made = []

    class Api:
        def repo_exists(self, repo_id):
            return False

        def create_repo(self, repo_id, **options):
            made.append(("create", repo_id, options))
            return f"https://hub/{repo_id}"

        def upload_folder(self, **options):
            made.append(("upload", options["repo_id"], options))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return made


def test_a_model_goes_up_with_its_card(calls, capsys):
    folder = asset("digits_teacher")
    assert main(["publish", str(folder), "me/digits"]) == 0
    (create, name, options), (upload, _, uploaded) = calls
    assert (create, name, options) == ("create", "me/digits", {"private": True, "exist_ok": True})
    assert upload == "upload" and uploaded["folder_path"] == str(folder)
    patterns = uploaded["allow_patterns"]
    for needed in ("config.json", "README.md", "diffusion_pytorch_model.safetensors"):
        assert (folder / needed).is_file() and any(
            __import__("fnmatch").fnmatch(needed, pattern) for pattern in patterns
        )
    assert not any("jsonl" in pattern or pattern == "*" for pattern in patterns)
    out = capsys.readouterr().out
    assert "done: https://hub/me/digits" in out and "next: dit-shd sample hub:me/digits" in out


def test_what_the_client_uploads_comes_back(monkeypatch, tmp_path, capsys):
    """By the real client, to a hub on this machine: made, filled, a second commit without old shards, and loaded."""
    folder, shard = asset("digits_teacher"), "diffusion_pytorch_model-00001-of-00002.safetensors"
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    with local_hub(monkeypatch, str(tmp_path / "cache")) as hub:
        assert main(["publish", str(folder), "me/digits"]) == 0
        files = hub.repositories["me/digits"]
        assert files == {file.name: file.read_bytes() for file in folder.iterdir() if file.name in files}
        assert {"config.json", "README.md", "diffusion_pytorch_model.safetensors"} <= set(files)
        assert hub.private == {"me/digits"} and hub.stored
        files |= {shard: b"old", "notes.txt": b"mine"}
        assert main(["publish", str(folder), "me/digits"]) == 0
        assert f"one more commit, without {shard} of an earlier one" in capsys.readouterr().out
        assert shard not in files and files["notes.txt"] == b"mine"
        assert same(loading.load("hub:me/digits").state_dict(), loading.load(folder).state_dict())
        monkeypatch.delenv("HF_TOKEN")
        assert main(["publish", str(folder), "me/others"]) == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert line.endswith("hf auth login signs in") and "me/others" not in hub.repositories


def test_an_earlier_upload_of_other_weights_leaves_the_head(calls, monkeypatch, capsys):
    """Loaders take the index of shards before a single file, so old shards would be loaded for the new model."""
    index = "diffusion_pytorch_model.safetensors.index.json"
    shard = "diffusion_pytorch_model-00001-of-00002.safetensors"
    names = [index, shard, "config.json", "diffusion_pytorch_model.safetensors", "notes.txt", "vae/model.safetensors"]
    _there(monkeypatch, private=True, names=names)
    assert main(["publish", str(asset("digits_teacher")), "me/digits"]) == 0
    patterns = calls[1][2]["delete_patterns"]
    assert list(filter_repo_objects(names, allow_patterns=patterns)) == [index, shard]
    assert "is there already (private); one more commit" in capsys.readouterr().out


def test_a_public_repository_is_not_taken_for_a_private_one(calls, monkeypatch, capsys):
    _there(monkeypatch, private=False, names=[])
    assert main(["publish", str(asset("digits_teacher")), "me/digits"]) == 2
    assert "is there already and public; private=false publishes" in capsys.readouterr().err
    assert not calls
    assert main(["publish", str(asset("digits_teacher")), "me/digits", "private=false"]) == 0
    assert calls


def _there(monkeypatch, private: bool, names: list[str]) -> None:
    """A hub where the repository is there already."""
    info = ModelInfo(id="me/digits", private=private, siblings=[{"rfilename": name} for name in names])
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_exists", lambda self, repo_id: True)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, repo_id: info, raising=False)


@pytest.fixture
def student(tmp_path):
    shutil.copytree(asset("digits_teacher"), tmp_path / "student")
    return tmp_path / "student"


def test_what_is_not_the_models_stays_here(calls, student, capsys):
    (student / "notes.txt").write_text("private")
    (student / "chat_template.jinja").write_text("{{ messages }}")
    others = ["results.json", "samples_16_seed0.json", "figures.json", "inputs.json"]  # of sample, evaluate, a person
    for name in others:
        (student / name).write_text("{}")
    (student / "secrets").mkdir()
    (student / "secrets" / "captions.json").write_text("{}")
    assert main(["publish", str(student), "me/digits"]) == 0
    patterns = calls[1][2]["allow_patterns"]
    names = ["config.json", "chat_template.jinja", "notes.txt", "secrets/captions.json", *others]
    assert list(filter_repo_objects(names, allow_patterns=patterns)) == ["config.json", "chat_template.jinja"]
    out = capsys.readouterr().out
    assert "README.md, chat_template.jinja, config.json, diffusion_pytorch_model.safetensors" in out
    assert not any(name in out for name in others)


def test_where_data_and_teacher_lie_stays_here(monkeypatch, student, tmp_path, capsys):
    lines = {
        "https://arxiv.org/abs/2502.07436": "https://arxiv.org/abs/2502.07436",
        "`runs/here/x` and /or, steps: 100/200": "`runs/here/x` and /or, steps: 100/200",
        "run: ~/runs/new/": "run: new",
        "data: {path: /home/me/my pictures/lat}": "data: {path: my pictures/lat}",
        "teachers: {a: /home/me/a/, b: /scratch/me/b/}": "teachers: {a: a, b: b}",
        "extra: [/home/me/a/, ~/b/c/d]": "extra: [a, d]",
    }
    (student / "README.md").write_text("\n".join(["---\nlicense: mit\n---", *lines]))
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    with local_hub(monkeypatch, str(tmp_path / "cache")) as hub:
        assert main(["publish", str(student), "me/digits"]) == 0
        files = hub.repositories["me/digits"]
    assert files["README.md"].decode().splitlines()[3:] == [*lines.values()]
    assert "/scratch/me/b" in (student / "README.md").read_text()
    assert {"config.json", "diffusion_pytorch_model.safetensors"} < set(files)


def test_a_model_that_draws_nothing_is_not_to_be_sampled(calls, tmp_path, capsys):
    sizes = dict(patch_size=7, embed_dim=24, depth=2, num_heads=3)
    options = dict(model="deit_tiny_patch16_224", num_classes=10, in_chans=1, img_size=28, mean=[0.3], std=[0.4])
    FAMILIES.build(Plugin("timm", {**options, "options": sizes}), "student").save_pretrained(tmp_path / "classifier")
    shutil.copy(asset("digits_teacher") / "README.md", tmp_path / "classifier")
    assert main(["publish", str(tmp_path / "classifier"), "me/classes"]) == 0
    assert "next: load it as hub:me/classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("left", "message"),
    [("nothing", "found none"), ("a pickle", "dit-shd convert makes"), ("half", "not whole safetensors")],
)
def test_a_model_without_whole_weights_is_refused(calls, student, left, message, capsys):
    file = student / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.unlink()
    if left == "a pickle":
        file.with_suffix(".bin").write_bytes(b"")
    if left == "half":
        file.write_bytes(whole[: len(whole) // 2])
    assert main(["publish", str(student), "me/digits"]) == 2
    assert message in capsys.readouterr().err
    assert not calls


def test_the_real_api_takes_these_arguments():
    """Names of the arguments as the installed huggingface_hub has them."""
    import inspect

    create = inspect.signature(huggingface_hub.HfApi.create_repo).parameters
    upload = inspect.signature(huggingface_hub.HfApi.upload_folder).parameters
    assert {"repo_id", "private", "exist_ok"} <= set(create)
    assert {"repo_id", "folder_path", "commit_message", "allow_patterns", "delete_patterns"} <= set(upload)
    for asked in (huggingface_hub.HfApi.repo_exists, huggingface_hub.HfApi.model_info):
        assert next(name for name in inspect.signature(asked).parameters if name != "self") == "repo_id"


@pytest.mark.parametrize("name", ["digits", "me/digits@main", "a/b/c", "me/ digits"])
def test_a_name_that_is_none_is_refused(calls, name, capsys):
    assert main(["publish", str(asset("digits_teacher")), name]) == 2
    assert "wanted OWNER/NAME" in capsys.readouterr().err
    assert not calls


def test_a_model_without_a_card_is_refused(calls, teacher, capsys):
    assert main(["publish", str(teacher), "me/digits"]) == 2
    assert "has no card" in capsys.readouterr().err
    assert not calls


def test_a_licence_that_forbids_derivatives_is_refused(calls, teacher, tmp_path, capsys):
    """Of the model itself, and of a teacher that it learned from."""
    for card in (
        "---\nlicense: cc-by-nd-4.0\n---\n",
        "---\nlibrary_name: dit_shd\nlicense: cc-by-nc-nd-4.0\ndit_shd:\n  learned_from: [teacher]\n---\n",
    ):
        (tmp_path / "README.md").write_text(card)
        (tmp_path / "config.json").write_text((teacher / "config.json").read_text())
        (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(
            (teacher / "diffusion_pytorch_model.safetensors").read_bytes()
        )
        assert main(["publish", str(tmp_path), "me/digits"]) == 2
        error = capsys.readouterr().err
        assert "nd-4.0 forbids to pass on what is made of the models behind it; not published" in error
        assert not calls


def test_no_login_is_one_line(calls, monkeypatch, capsys):
    def refuse(self, *args, **options):
        raise OSError("401 Client Error\nUnauthorized")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    assert main(["publish", str(asset("digits_teacher")), "me/digits"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "hf auth login" in lines[0]


def test_shards_that_are_not_all_there_stay_here(calls, tmp_path, capsys):
    """On the hub they would take the place of whole ones."""
    folder = tmp_path / "sharded"
    loading.load("asset:digits_teacher").save_pretrained(folder, max_shard_size="2MB")
    shutil.copyfile(asset("digits_teacher") / "README.md", folder / "README.md")
    assert main(["publish", str(folder), "me/digits"]) == 0 and len(calls) == 2
    gone = sorted(folder.glob("*-of-*.safetensors"))[1]
    gone.unlink()
    assert main(["publish", str(folder), "me/digits"]) == 2 and len(calls) == 2
    assert f"wanted all that it lists, found no {gone.name}; not published" in capsys.readouterr().err


def test_a_whole_pipeline_is_not_a_student(calls, tmp_path, capsys):
    pipeline = write_pipeline("sd3", tmp_path / "pipeline")
    assert main(["publish", str(pipeline), "me/whole"]) == 2 and not calls
    assert "is a whole pipeline; publish the run or the student that is in it" in capsys.readouterr().err


@pytest.fixture
def drawn(tmp_path):
    """The folder of a text-to-image student, of a pipeline in a folder of this machine."""
    folder = prompt_student(write_pipeline("sd3", tmp_path / "pipeline"), tmp_path / "run") / "student"
    card = "---\nlicense: mit\n---\nIt replaces the transformer of pipeline, a StableDiffusion3Pipeline\nteacher: {}\n"
    (folder / "README.md").write_text(card.format(tmp_path / "pipeline"))
    return folder


def test_where_a_pipeline_lies_stays_here(monkeypatch, drawn, tmp_path, capsys):
    """By the real client: the record and the card had held the path, and the command was one that nobody could run."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    with local_hub(monkeypatch, str(tmp_path / "cache")) as hub:
        assert main(["publish", str(drawn), "me/text"]) == 0
        out, files = capsys.readouterr().out, hub.repositories["me/text"]
        assert "a folder that others do not have; say where on the hub it is by pipeline=hub:OWNER/NAME" in out
        assert "next: dit-shd sample hub:me/text pipeline=hub:OWNER/NAME prompts=FILE" in out
        assert {file.name for file in drawn.iterdir()} == set(files)
        assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
        assert json.loads(files["pipeline.json"])["pipeline"] == "pipeline"
        assert main(["publish", str(drawn), "me/text", "pipeline=hub:they/sd3"]) == 0
        out = capsys.readouterr().out
        assert "next: dit-shd sample hub:me/text prompts=FILE" in out and "do not have" not in out
        assert json.loads(files["pipeline.json"]) == {**read_values(drawn), "pipeline": "hub:they/sd3"}
        assert b"transformer of hub:they/sd3, a Stable" in files["README.md"]
        assert b"teacher: hub:they/sd3" in files["README.md"]
    assert read_values(drawn)["pipeline"] == str(tmp_path / "pipeline")


@pytest.mark.parametrize("place", ["they/sd3", "hub:sd3", "/tmp/pipeline"])
def test_a_pipeline_that_others_cannot_have_is_refused(calls, drawn, place, capsys):
    assert main(["publish", str(drawn), "me/text", f"pipeline={place}"]) == 2 and not calls
    assert f"pipeline: wanted hub:OWNER/NAME, found '{place}'" in capsys.readouterr().err


def test_a_model_that_is_drawn_with_no_pipeline_is_given_none(calls, capsys):
    assert main(["publish", str(asset("digits_teacher")), "me/digits", "pipeline=hub:they/sd3"]) == 2 and not calls
    assert "records no pipeline" in capsys.readouterr().err


def read_values(folder):
    return json.loads((folder / "pipeline.json").read_text())


@pytest.mark.parametrize(
    ("layers", "scale", "message"),
    [(8, 1.0, "the weights do not fit config.json"), (6, float("nan"), "its weights are not finite")],
)
def test_a_model_that_nobody_could_load_stays_here(calls, student, layers, scale, message, capsys):
    config, weights = student / "config.json", student / "diffusion_pytorch_model.safetensors"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": layers}))
    save_file({name: scale * tensor for name, tensor in load_file(weights).items()}, weights)
    assert main(["publish", str(student), "me/digits"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.endswith("; not published\n")
    assert not calls
