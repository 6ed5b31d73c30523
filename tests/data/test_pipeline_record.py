import json
from dataclasses import replace

from tiny_pipelines import write_pipeline

from dit_shd.data.pipeline_record import text_digest, text_digests
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
