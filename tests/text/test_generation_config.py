"""What a model's makers recommend: where it stands, what of it is taken, and what wins."""

from __future__ import annotations

import json

import pytest

from engine.config import EngineConfig
from engine.text.errors import TextError
from engine.text.generation_config import read_defaults
from engine.text.loading import load_text
from tests.text.tiny_tokenizers import byte_level_hf

OWN = {
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "min_p": 0.1,
    "repetition_penalty": 1.05,
    "max_new_tokens": 7,
    "do_sample": True,
    "eos_token_id": [9, 2],
}


@pytest.fixture
def folder(tmp_path):
    byte_level_hf().save_pretrained(tmp_path)
    return tmp_path


def write(folder, name="generation_config.json", **values):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(values))


def defaults(folder, wanted="auto", override=None):
    return read_defaults(str(folder), wanted=wanted, override=override)


def test_the_models_own_are_taken(folder):
    write(folder, **OWN)
    found = defaults(folder)
    assert found.eos_token_ids == [9, 2]
    assert found.sampling == {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.1,
        "repetition_penalty": 1.05,
        "max_tokens": 7,
    }
    params = found.params()
    assert (params.temperature, params.max_tokens, params.presence_penalty) == (0.6, 7, 0.0)
    assert found.in_words().startswith("Sampling defaults of generation_config.json: temperature")


def test_none_of_them_with_vllm_but_its_ends_of_sequence(folder):
    write(folder, **OWN)
    found = defaults(folder, "vllm")
    assert found.sampling == {} and found.in_words() == "" and found.eos_token_ids == [9, 2]


def test_another_folder(folder, tmp_path):
    write(folder, **OWN)
    write(tmp_path / "mine", top_k=3)
    found = defaults(folder, str(tmp_path / "mine"))
    assert found.sampling == {"top_k": 3} and "mine" in found.in_words()
    with pytest.raises(TextError, match="neither auto nor vllm nor a folder with") as error:
        defaults(folder, str(tmp_path / "nothing"))
    assert error.value.param == "generation_config"


@pytest.mark.parametrize("wanted", ["auto", "vllm"])
def test_what_is_given_with_a_flag_wins(folder, wanted):
    write(folder, temperature=0.6, top_k=20)
    found = defaults(folder, wanted, {"temperature": 0, "max_new_tokens": 4})
    own = {"top_k": 20} if wanted == "auto" else {}
    assert found.sampling == {**own, "temperature": 0, "max_tokens": 4}
    assert "--override-generation-config" in found.in_words()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"temperatur": 1}, "names temperatur; it may set temperature, top_p"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_k": "many"}, "top_k"),
        ({"temperature": [1]}, "temperature"),
    ],
)
def test_an_override_that_can_not_be_used(folder, override, words):
    with pytest.raises(TextError, match=words):
        defaults(folder, override=override)


@pytest.mark.parametrize("values", [{"temperature": -3}, {"top_p": "x"}, {"top_k": 2.5}])
def test_a_value_in_the_file_that_can_not_be_used_is_named(folder, values):
    write(folder, **values)
    with pytest.raises(TextError, match=r"generation_config.json has a default .*vllm leaves"):
        defaults(folder)
    assert defaults(folder, "vllm").sampling == {}


def test_a_file_that_is_no_json(folder):
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(TextError, match=r"generation_config.json can't be used") as error:
        defaults(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("beside", [None, {"top_k": 5}])
@pytest.mark.parametrize("eos", [7, [7, 9]])
def test_an_end_of_sequence_that_stands_only_in_the_models_config(folder, eos, beside):
    """beside: a generation_config.json without one; transformers reads config.json without it."""
    write(folder, "config.json", model_type="llama", eos_token_id=eos)
    if beside is not None:
        write(folder, **beside)
    assert defaults(folder).eos_token_ids == (eos if isinstance(eos, list) else [eos])
    tokenizer, _ = load_text(EngineConfig(model=str(folder)))
    assert tokenizer.eos_token_ids == [2, *(eos if isinstance(eos, list) else [eos])]


@pytest.mark.parametrize("eos", ["</s>", [1.5], [[2]], {"a": 1}, True])
def test_an_end_of_sequence_that_is_no_token_is_named(folder, eos):
    write(folder, eos_token_id=eos)
    with pytest.raises(TextError, match=r"generation_config.json has the eos_token_id"):
        defaults(folder)


def test_minus_one_is_none(folder):
    write(folder, eos_token_id=[7, -1])
    assert defaults(folder).eos_token_ids == [7]


def test_an_end_of_sequence_of_the_text_part(folder):
    write(folder, "config.json", model_type="gemma3", text_config={"eos_token_id": 5})
    assert 5 in defaults(folder).eos_token_ids


def test_sampling_defaults_of_old_checkpoints_stand_in_their_config(folder):
    write(folder, "config.json", model_type="llama", temperature=0.3)
    found = defaults(folder)
    assert found.sampling in ({"temperature": 0.3}, {})  # as this release of transformers reads it
    if found.sampling:
        assert "config.json" in found.in_words()


def test_a_model_that_recommends_nothing(folder):
    found = defaults(folder)
    assert (found.eos_token_ids, found.sampling, found.in_words()) == ([], {}, "")
