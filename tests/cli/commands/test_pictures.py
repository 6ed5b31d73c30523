"""`dit-shd pictures`: the same prompts side by side, and what is refused."""

import html
import json
from pathlib import Path

import numpy as np
from pages import words_of

from dit_shd.cli.program import main

PROMPTS = ["a nine", "two digits: <four> and seven", "a thin three"]


def samples(file: Path, prompts=PROMPTS, side=16, seed=0, count=3, **call) -> Path:
    """An npz as `dit-shd sample prompts=...` writes it."""
    images = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    np.savez(file, images, np.arange(count) % len(prompts))
    record = {"prompts": prompts, "seed": seed, "call": call, "run": f"runs/{file.stem}"}
    file.with_suffix(".json").write_text(json.dumps(record))
    return file


def page_of(tmp_path: Path, *words: str) -> str:
    out = tmp_path / "page.html"
    assert main(["pictures", *words, f"out={out}", "force=true"]) == 0
    return words_of(out.read_text(encoding="utf-8"))


def test_prompts_are_rows_and_models_are_columns(tmp_path):
    files = [samples(tmp_path / f"{name}.npz") for name in ("teacher", "student")]
    page = page_of(tmp_path, *map(str, files))
    places = [
        page.index(f'alt="{html.escape(f"{model}: {prompt}", quote=True)}"')
        for prompt in PROMPTS
        for model in ("teacher", "student")
    ]
    assert places == sorted(places)
    assert "all 3 prompts, none chosen" in page
    assert "different" not in page
    assert "as asked" not in page, "nobody has read them"


def test_pictures_of_several_sizes_are_said_to_be(tmp_path):
    """The first file's size had been said of all."""
    large, small = samples(tmp_path / "large.npz", side=24), samples(tmp_path / "small.npz")
    assert "Pictures by large (24 x 24), small (16 x 16): all 3 prompts" in page_of(tmp_path, str(large), str(small))
    assert "Pictures of 24 x 24 by large: all 3 prompts" in page_of(tmp_path, str(large))


def test_pictures_are_the_files(tmp_path):
    """Small ones to the pixel; large ones are reduced."""
    import base64
    import io
    import re

    from PIL import Image

    small, large = samples(tmp_path / "small.npz"), samples(tmp_path / "large.npz", side=400)
    assert main(["pictures", str(small), str(large), f"out={tmp_path / 'page.html'}"]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    found = re.findall(r'<img src="data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)"', text)
    assert [kind for kind, _ in found] == ["png", "jpeg"] * 3
    images = [Image.open(io.BytesIO(base64.b64decode(data))) for _, data in found]
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in images[::2]]), np.load(small)["arr_0"])
    assert {image.size for image in images[1::2]} == {(256, 256)}


def test_what_differs_in_sampling_is_said(tmp_path):
    one = samples(tmp_path / "one.npz", guidance_scale=2)
    two = samples(tmp_path / "two.npz", seed=1, guidance_scale=5)
    page = page_of(tmp_path, str(one), str(two), "names=[a,b]")
    assert "Sampled with different seed: a 0, b 1." in page
    assert "Sampled with different guidance_scale: a 2, b 5." in page


def test_fewer_are_shown_where_fewer_are_asked_or_there(tmp_path):
    one, two = samples(tmp_path / "one.npz"), samples(tmp_path / "two.npz", count=2)
    assert page_of(tmp_path, str(one), str(two)).count("<img ") == 4
    page = page_of(tmp_path, str(one), "count=1")
    assert page.count("<img ") == 1 and "the first 1 of 3 prompts" in page


def refused(capsys, *words: object) -> str:
    assert main(["pictures", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_bad_input_is_one_line(tmp_path, capsys):
    one, out = samples(tmp_path / "one.npz"), f"out={tmp_path / 'page.html'}"
    other = samples(tmp_path / "other.npz", prompts=["a nine", "a two", "a thin three"])
    assert "prompt 2 is 'a two', of one 'two digits: <four> and seven'" in refused(capsys, one, other, out)
    np.savez(tmp_path / "classes.npz", np.zeros((3, 8, 8, 3), np.uint8), np.zeros(3, int))
    assert "records no prompts; wanted an npz of dit-shd sample" in refused(capsys, tmp_path / "classes.npz", out)
    assert "models by class stand side by side in dit-shd compare" in refused(capsys, tmp_path / "classes.npz", out)
    assert "names: wanted 1 different ones" in refused(capsys, one, out, "names=[a,b]")
    assert "count" in refused(capsys, one, out, "count=0")
    assert "samples: wanted at least one npz" in refused(capsys, "samples=[]", out)
    assert not (tmp_path / "page.html").exists()
    assert main(["pictures", str(one), out]) == 0
    assert "is there already" in refused(capsys, one, out)


def test_samples_are_never_replaced_by_their_page(tmp_path, capsys):
    file = samples(tmp_path / "a.npz")
    before = file.read_bytes()
    assert main(["pictures", str(file), f"out={file}", "force=true"]) == 2
    assert "is what is read here, and would be lost" in capsys.readouterr().err
    assert file.read_bytes() == before
