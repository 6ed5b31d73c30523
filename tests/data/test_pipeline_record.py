import json
from dataclasses import replace

import pytest
from tiny_pipelines import write_pipeline

from dit_shd.core.errors import UserError
from dit_shd.data.pipeline_record import read_index, text_digest, text_digests
from dit_shd.diffusion.pipelines import open_pipeline, record_of
from dit_shd.diffusion.text_models import text_differs
from dit_shd.models import loading

SETTINGS = "tokenizer/tokenizer_config.json"


def settings_written(folder, more, **style):
    file = folder / SETTINGS
    file.write_text(json.dumps(json.loads(file.read_text()) | more, **style))


def test_a_pipeline_that_was_saved_again_has_the_same_text_encoders(tmp_path):
    folder = write_pipeline("sd3", tmp_path / "pipeline")
    open_pipeline(folder).save_pretrained(again := tmp_path / "again")
    assert text_digest(again) == text_digest(folder)
    settings_written(again, {"is_local": True, "name_or_path": "x", "transformers_version": "1"}, indent=7)
    assert text_digest(again) == text_digest(folder)
    settings_written(again, {"model_max_length": 5})
    assert text_digest(again) != text_digest(folder)


def test_records_that_hashed_settings_byte_by_byte_are_accepted(tmp_path):
    folder = write_pipeline("sd3", tmp_path / "pipeline")
    assert text_digests(folder) == (text_digest(folder),)
    settings_written(folder, {"is_local": True})
    now, before = text_digests(folder)
    assert now != before
    model, record = loading.load(folder), record_of(str(folder), folder)
    assert text_differs(model, record) is None
    assert text_differs(model, replace(record, text_sha256=before)) is None
    assert "has learned other text encoders" in text_differs(model, replace(record, text_sha256="0" * 64))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "a transformer_2 alone, which is not supported"),
        ({"transformer_2": [None, None]}, "none$"),
        ({}, "none$"),
    ],
)
def test_a_pipeline_whose_transformer_is_left_out_is_refused_in_words(tmp_path, second, words):
    """As one of Wan 2.2 may be: 'its classes are no texts' said nothing of it."""
    index = {"_class_name": "WanPipeline", "transformer": [None, None], **second}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"wanted a pipeline with a transformer, found {words}"):
        read_index(tmp_path)
