"""--tokenizer: the text part of a model may come from another folder, its defaults do not."""

from __future__ import annotations

import json

from engine.config import EngineConfig
from engine.text.loading import load_text
from tests.text.tiny_tokenizers import byte_level_hf


def test_the_tokenizer_of_another_folder(tmp_path):
    model, other = tmp_path / "model", tmp_path / "other"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    defaults = {"temperature": 0.5, "eos_token_id": [7]}
    (model / "generation_config.json").write_text(json.dumps(defaults))
    byte_level_hf().save_pretrained(other)
    tokenizer, found = load_text(EngineConfig(model=str(model), tokenizer=str(other)))
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    assert found.sampling["temperature"] == 0.5 and 7 in found.eos_token_ids
