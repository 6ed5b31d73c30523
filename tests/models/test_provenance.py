"""The licence of a model, and what it learned from: of files, of folders, and along a chain of distillations."""

import json

import pytest
import torch
from language import GPT2, LLAMA, causal_lm, lines
from runs import run
from safetensors import safe_open
from small_families import build, to

from dit_shd.models import cards, export, provenance
from dit_shd.models.families.dit import DiT
from dit_shd.models.families.timm import TimmModel
from dit_shd.models.loading import why_not_conditional


@pytest.mark.parametrize(
    ("file", "license", "base"),
    [
        ("DiT-XL-2-256x256.pt", "cc-by-nc-4.0", "facebook/DiT-XL-2-256"),
        ("DiT-XL-2-512x512.pt", "cc-by-nc-4.0", "facebook/DiT-XL-2-512"),
        ("mdt_xl2_v2_ckpt.pt", "apache-2.0", "shgao/MDT-XL2"),
        ("mine.pt", "unknown", None),
    ],
)
def test_public_files_are_known_by_name(tmp_path, file, license, base):
    (tmp_path / file).touch()
    found = provenance.provenance(tmp_path / file)
    assert found.license == license
    assert found.base_model == ((base,) if base else ())
    assert bool(found.trained_on) == bool(base)


def test_a_dit_of_the_public_sizes_is_taken_for_the_public_one(tmp_path, monkeypatch):
    small = dict(num_layers=2, num_attention_heads=2, attention_head_dim=4, patch_size=2)
    monkeypatch.setitem(DiT.SIZES, "XL/2", small)  # as if the public one were small
    torch.save(DiT(**small).to_public(), tmp_path / "renamed.pt")
    lines = to(tmp_path / "renamed.pt", tmp_path / "out", heads=2).lines
    assert any("licence: cc-by-nc-4.0, taken for the public DiT-XL-2-256x256" in line for line in lines)
    assert to(tmp_path / "renamed.pt", tmp_path / "mine", heads=2, license="mit").lines[1] == "licence: mit, as you say"


def licensed(folder, license):
    export.write(build("mdt"), folder, f"---\nlicense: {license}\ntrained_on: [photographs]\n---\n# A model\n")
    return folder


def head(folder):
    return provenance.front_matter(folder / "student" / "README.md")


def test_a_chain_of_distillations_keeps_its_terms(values, tmp_path):
    """Non-commercial teacher, student, and the student's student, whose card still names the first."""
    student = {**values["student"], "num_attention_heads": 2}
    base = {**values, "steps": 1, "student": student, "losses": [{"name": "output"}]}
    first = licensed(tmp_path / "restricted", "cc-by-nc-4.0")
    second, _ = run({**base, "run": str(tmp_path / "second"), "teacher": str(first)})
    third, _ = run({**base, "run": str(tmp_path / "third"), "teacher": str(second.run)})
    card = head(third.run)
    assert card["license"] == "cc-by-nc-4.0"
    assert card["learned_from"] == ["second (cc-by-nc-4.0)", "restricted (cc-by-nc-4.0)"]
    assert card["trained_on"] == [f"npz {values['data']['path']}", "photographs"]
    text = (third.run / "student" / "README.md").read_text()
    assert "no commercial use" in text
    to(third.run, tmp_path / "third.safetensors")
    with safe_open(tmp_path / "third.safetensors", "pt") as file:
        assert file.metadata()["license"] == "cc-by-nc-4.0"
    assert provenance.provenance(tmp_path / "third.safetensors").learned_from[-1] == "restricted (cc-by-nc-4.0)"


def test_a_chain_of_weights_of_ones_own_is_free_to_the_end(values, tmp_path):
    """The second student of a teacher that was trained here was `unknown`, and its card said to ask the makers."""
    base = {key: value for key, value in values.items() if key not in ("teacher", "losses")} | {"steps": 1}
    first, _ = run({**base, "run": str(tmp_path / "first")})
    learns = {**base, "losses": [{"name": "output"}]}
    second, _ = run({**learns, "run": str(tmp_path / "second"), "teacher": str(first.run)})
    third, _ = run({**learns, "run": str(tmp_path / "third"), "teacher": str(second.run)})
    assert head(third.run)["learned_from"] == [
        f"{name} (its maker chooses the licence)" for name in ("second", "first")
    ]
    assert [provenance.provenance(str(each.run)).license for each in (first, second, third)] == [None] * 3
    assert "license" not in head(third.run)


def test_cards_of_models_without_a_teacher_and_of_the_demos(values, tmp_path):
    alone, _ = run({**values, "steps": 1, "losses": [], "teacher": None})
    card = head(alone.run)
    assert "license" not in card and "learned_from" not in card
    assert provenance.provenance(alone.run).license is None
    asset = provenance.provenance("asset:digits_teacher")
    assert asset.license == "apache-2.0"
    assert "MNIST" in asset.trained_on[0]


@pytest.mark.parametrize(
    ("library", "code"),
    [
        ("timm", 'timm.create_model("local-dir:FOLDER", pretrained=True)'),
        ("transformers", 'AutoModelForCausalLM.from_pretrained("FOLDER")'),
        ("dit_shd", 'dit_shd.load("this folder")'),
    ],
)
def test_a_card_names_the_library_that_opens_the_folder(library, code, tmp_path):
    """And is known as one of dit_shd's, whose weights inherit no licence; what is no denoiser is named likewise."""
    sizes = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    made = {
        "timm": lambda: TimmModel(num_classes=3, img_size=32, options=sizes),
        "transformers": lambda: causal_lm(LLAMA),
        "dit_shd": lambda: build("mdt"),
    }
    model = made[library]()
    facts = cards.RunFacts("", False, "data", provenance.Provenance(None))
    export.write(model, tmp_path / "m", cards.trained(model, facts, 3, 0.0, 0.5))
    assert provenance.front_matter(tmp_path / "m" / "README.md")["library_name"] == library
    assert f"`{code}`" in (tmp_path / "m" / "README.md").read_text()
    assert provenance.provenance(tmp_path / "m").license is None
    reason = why_not_conditional(model)
    assert (reason is None) == (library == "dit_shd")
    assert reason is None or f"this one is {library}'s, whose folder is opened by {code}" in reason
    assert "text_to_image" not in str(reason)


@pytest.mark.parametrize(
    ("licenses", "together"),
    [
        ([], None),
        ([None, None], None),
        (["apache-2.0", None], "apache-2.0"),
        (["apache-2.0", "unknown"], "unknown"),
        (["unknown", "cc-by-nc-4.0", "mit"], "cc-by-nc-4.0"),
        (["cc-by-nc-4.0", "openrail"], "other"),
    ],
)
def test_the_licence_that_binds_most_is_inherited(licenses, together):
    assert provenance.inherited([provenance.Provenance(license) for license in licenses]).license == together


@pytest.mark.parametrize(
    "text", ["", "# no front matter", "---\n[1\n---\n", "---\n- 3\n---\n", "---\nlicense: [1]\n---\n"]
)
def test_cards_that_say_nothing_are_unknown(tmp_path, text):
    export.write(build("mdt"), tmp_path / "m", text)
    assert provenance.provenance(tmp_path / "m").license == "unknown"
    (tmp_path / "m" / "README.md").unlink()
    assert provenance.provenance(tmp_path / "m").license == "unknown"
    assert json.loads((tmp_path / "m" / "config.json").read_text())["_class_name"] == "MDTv2"


def test_of_several_licences_what_any_excludes_is_excluded(tmp_path):
    """Also where the card of a model that learned from both says `other`."""
    both = [provenance.Provenance(name, (), (f"{name}/model ({name})",)) for name in ("cc-by-nc-4.0", "cc-by-nd-4.0")]
    origin = provenance.inherited(both)
    (tmp_path / "README.md").write_text(
        f"---\nlicense: {origin.license}\nlearned_from: {json.dumps(origin.learned_from)}\n---\n"
    )
    for each in (origin, provenance.of_folder("student", tmp_path)):
        assert (each.license, each.noncommercial, each.forbids_derivatives) == ("other", True, True)
    assert "no commercial use; it forbids to pass on" in cards.licence_text(origin)
    apart = [provenance.inherited([one, provenance.Provenance("mit")]) for one in both]
    assert [(each.noncommercial, each.forbids_derivatives) for each in apart] == [(True, False), (False, True)]


@pytest.mark.parametrize(
    ("name", "noncommercial", "forbids"),
    [
        ("flux-1-dev-non-commercial-license", True, False),
        ("sai-nc-community", True, False),
        ("Research_NonCommercial", True, False),
        ("cc-by-nc-nd-variant", True, True),
        ("openrail++", False, False),
        ("once-and-for-all", False, False),
    ],
)
def test_a_licence_that_a_card_names_itself(tmp_path, name, noncommercial, forbids):
    """Of FLUX.1-dev, Stable Diffusion 3.5 and others: `license: other` and a name, which was dropped."""
    link = "https://example.org/nd/LICENSE.md"
    teacher = licensed(tmp_path / "teacher", f"other\nlicense_name: {name}\nlicense_link: {link}")
    first = provenance.provenance(teacher)
    assert (first.license, first.learned_from) == ("other", (f"teacher ({name.lower()}, {link})",))
    origin = provenance.inherited([first, provenance.Provenance("mit", (), ("small/model (mit)",))])
    assert (origin.noncommercial, origin.forbids_derivatives) == (noncommercial, forbids)
    card = cards.converted(build("mdt"), "source", "0", origin)
    assert f"other ({name.lower()}: {link}), inherited" in card
    assert ("no commercial use" in card) == noncommercial
    export.write(build("mdt"), tmp_path / "student", card)
    head = provenance.front_matter(tmp_path / "student" / "README.md")
    assert (head["license"], head["license_name"], head["license_link"]) == ("other", name.lower(), link)
    unknown = provenance.Provenance("other", (), ("big/model (other)",))
    assert provenance.inherited([first, unknown]).only_name is None, "one of several is not the whole"
    again = provenance.provenance(tmp_path / "student")
    assert (again.license, again.named, again.noncommercial) == ("other", origin.named, noncommercial)


@pytest.mark.parametrize(
    ("written", "license", "forbids"),
    [
        ("[cc-by-nc-nd-4.0]", "cc-by-nc-nd-4.0", True),
        ("[MIT, CC-BY-ND-4.0]", "cc-by-nd-4.0", True),
        ("[cc-by-nd-4.0, openrail]", "other", True),
        ("Apache-2.0", "apache-2.0", False),
        ("[]", "unknown", False),
    ],
)
def test_a_card_may_list_licences_in_any_case(tmp_path, written, license, forbids):
    found = provenance.provenance(licensed(tmp_path / "model", written))
    assert (found.license, found.forbids_derivatives) == (license, forbids)


def test_weights_that_a_student_begins_with_are_behind_it(tmp_path):
    """A pretrained language model: its licence was lost, and with it that nothing may be made of it."""
    causal_lm(GPT2).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: cc-by-nd-4.0\n---\n")
    values = {
        "task": "language_modeling",
        "data": {"name": "text", "path": lines(tmp_path), "document": "line", "length": 16},
        "steps": 1,
        "batch_size": 2,
        "ema": 0.5,
    }
    for pretrained in (True, False):
        student = {"name": "transformers", "source": str(tmp_path / "model"), "pretrained": pretrained}
        config, _ = run({**values, "student": student, "run": str(tmp_path / str(pretrained))})
        origin = provenance.provenance(config.run)
        assert origin.forbids_derivatives == pretrained
        assert origin.license == ("cc-by-nd-4.0" if pretrained else None)
