"""Command lines, files and variables as vLLM's users write them."""

from __future__ import annotations

import json

import pytest

from engine.config import ConfigError, EngineConfig
from engine.config.accepted import ACCEPTED, BY_NAME


def parse(*arguments: str, **environ: str) -> EngineConfig:
    return EngineConfig.from_args(arguments, environ)


def test_the_model_may_stand_anywhere():
    for arguments in (
        ("a/b", "--port", "9001"),
        ("--port", "9001", "a/b"),
        ("--port", "9001", "--model", "a/b"),
        ("a/b", "--model", "a/b", "--port", "9001"),
    ):
        config = parse(*arguments, MODEL_NAME="other/one")
        assert (config.model, config.port) == ("a/b", 9001)
    with pytest.raises(ConfigError, match="give one of them"):
        parse("a/b", "--model", "c/d")


def test_flags_may_have_underscores_and_values_keep_theirs():
    config = parse("--max_num_seqs=3", "--no-enable_prefix_caching", "--served_model_name", "a_b")
    assert config.served_model_name == ["a_b"]
    assert parse("--chat_template={{ a_b }}").chat_template == "{{ a_b }}"
    assert config.max_num_seqs == 3 and config.enable_prefix_caching is False


@pytest.mark.parametrize(
    ("text", "number"),
    [("2048", 2048), ("2k", 2000), ("2K", 2048), ("1.5k", 1500), ("2G", 2**31), ("2g", 2 * 10**9),
     ("1m", 10**6), ("1M", 2**20)],
)  # fmt: skip
def test_whole_numbers(text, number):
    config = parse("--kv-cache-memory-bytes", text, MAX_NUM_BATCHED_TOKENS=text)
    assert (config.kv_cache_memory_bytes, config.max_num_batched_tokens) == (number, number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k",
        "2kk",
        "2.5",
        "1.0001k",
        "2 k",
        "0x10",
        "1e3",
        "٣.٣",
        "٣",
        "9" * 5000,
        "9" * 400 + "k",
    ],
)
def test_no_whole_number(text):
    with pytest.raises(ConfigError, match=r"--max-num-seqs is .*must be a whole number"):
        parse("--max-num-seqs", text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "much"])
def test_no_number(text):
    with pytest.raises(ConfigError, match=r"--swap-space is .*must be a number"):
        parse(f"--swap-space={text}")


def test_auto_leaves_a_number_to_the_engine():
    assert parse("--max-model-len", "auto", MAX_MODEL_LEN="7").max_model_len is None
    assert parse("--max-model-len", "-1").max_model_len is None
    with pytest.raises(ConfigError, match="--port is 'auto'"):
        parse("--port", "auto")


def test_several_names_and_keys():
    config = parse("a/b", "--served-model-name", "x", "y", "--api-key", "k1", "k2")
    assert config.served_model_name == ["x", "y"] and config.api_key == ["k1", "k2"]
    assert config.model_name == "x" and "k2" not in str(config.public())
    config = parse(API_KEY='["k1", "k2"]', SERVED_MODEL_NAME="one name")
    assert config.api_key == ["k1", "k2"] and config.served_model_name == ["one name"]
    assert parse(API_KEY="two words").api_key == ["two words"]  # and not two weaker keys
    for bad in ("[1]", '["a"', "[null]"):
        with pytest.raises(ConfigError, match=r"API_KEY|--api-key"):
            parse(API_KEY=bad)


def test_what_stands_around_a_variable_is_left_out():
    """A form or a file of secrets adds a line end that nobody sees, and nobody could send."""
    config = parse(API_KEY=" open sesame\r\n", MODEL_NAME="a/b\n", PORT=" 9000 ", HF_TOKEN="t\n")
    told = (config.api_key, config.model, config.port, config.hf_token)
    assert told == (["open sesame"], "a/b", 9000, "t")


@pytest.mark.parametrize(
    "key", ["", " ", "\n", " padded", "padded ", "two\nlines", "a\tb", "\xa0a"]
)
def test_a_key_that_no_client_could_send_is_refused(key):
    for given in ({"API_KEY": json.dumps(["fine", key])}, {}):
        flags = [] if given else ["--api-key", "fine", key]
        with pytest.raises(ConfigError, match="--api-key") as refused:
            parse(*flags, **given)
        assert "padded" not in str(refused.value)
    if key.strip() == "" and key:  # it must not leave the server open
        with pytest.raises(ConfigError, match="--api-key is empty"):
            parse(API_KEY=key)


def test_other_words_for_a_dtype():
    assert parse("--dtype", "half").dtype == "float16"
    assert EngineConfig(dtype="float").dtype == "float32"


def test_short_flags():
    assert parse("-tp", "1").tensor_parallel_size == 1
    assert parse("-tp", "2").tensor_parallel_size == 2
    with pytest.raises(ConfigError, match="names a draft model, which is not divided"):
        draft = {"method": "draft", "model": "smollm2"}
        EngineConfig(tensor_parallel_size=2, speculative_config=draft)
    with pytest.raises(ConfigError, match="--pipeline-parallel-size is '2'"):
        parse("-pp", "2")
    assert parse("-q", "awq").quantization == "awq"


@pytest.mark.parametrize("one", ACCEPTED, ids=lambda one: one.name)
def test_what_is_done_anyway_may_be_asked_for(one, tmp_path):
    words = [f"--{one.name}"] if one.is_switch else [f"--{one.name}", one.values[0]]
    assert parse(*words) == parse()
    file = tmp_path / "options.yaml"
    file.write_text(f"{one.name}: {one.values[0]}\n")
    assert parse("--config", str(file)) == parse()
    if not one.is_switch:
        with pytest.raises(ConfigError, match=f"--{one.name} is 'other'.*leave it out"):
            parse(f"--{one.name}", "other")
    if f"no-{one.name}" in BY_NAME:
        return  # its opposite asks for nothing either
    file.write_text(f"{one.name}: false\n")
    with pytest.raises(ConfigError, match="leave it out"):
        parse("--config", str(file))


def test_python_arguments_that_ask_for_what_is_done_anyway():
    granted = {"pipeline_parallel_size": 1, "enable_chunked_prefill": True, "cpu_offload_gb": 0.0,
               "trust_remote_code": False, "quantization": None, "tokenizer_mode": "auto",
               "enable_lora": False, "task": "generate", "enable_log_requests": False}  # fmt: skip
    assert EngineConfig.from_options({**granted, "max_num_seqs": 3}).max_num_seqs == 3
    for name, value, says in (
        ("pipeline_parallel_size", 2, "each device has a share of all layers"),
        ("trust_remote_code", True, "no code of a checkpoint"),
        ("enable_chunked_prefill", False, "always computed in chunks"),
        ("quantization", "hqq", "quantization is 'hqq'; .* awq"),
        ("max_num_sequences", 3, "max_num_sequences is no option"),
    ):
        with pytest.raises(ConfigError, match=says):
            EngineConfig.from_options({name: value})


def test_a_file_stands_between_flags_and_environment(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(
        "model: a/b\nport: 9001\nmax_model_len: 2k\nenable-prefix-caching: false\n"
        "served-model-name: [x, 7]\napi-key: 1234\ngpu-memory-utilization: 1\n"
        "no-enforce-eager: true\n"
    )
    config = parse("--config", str(file), "--port", "9002", MODEL_NAME="no", SEED="5")
    assert (config.model, config.port, config.max_model_len, config.seed) == ("a/b", 9002, 2000, 5)
    assert config.enable_prefix_caching is False and config.enforce_eager is False
    assert config.served_model_name == ["x", "7"] and config.api_key == ["1234"]
    file.write_text("")
    with pytest.raises(ConfigError, match="must hold options"):
        parse("--config", str(file))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot: 9001", "'prot', which is no option"),
        ("port: [1, 2]", "--port"),
        ("port: yes", "--port"),
        ("port: many", "port is 'many'"),
        ("max-num-seqs: 1\nmax_num_seqs: 2", "names max_num_seqs twice"),
        ("config: other.yaml", "'config', which is no option"),
        ("- port", "must hold options"),
        ("port: {", "no valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "no valid YAML"),
        ("quantization: hqq", "quantization is 'hqq'"),
        ("1: 2", "'1', which is no option"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text, says, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse("--config", str(file))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError, match=r"--config nowhere.yaml: the file can't be read"):
        parse("--config", "nowhere.yaml")


def test_help_shows_every_option(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    assert "--max-num-seqs" in shown and "--config FILE" in shown and "[MODEL]" in shown


def test_defaults_of_sampling():
    config = EngineConfig.from_args(
        ["--generation-config", "vllm", "--override-generation-config", '{"temperature": 0.5}'], {}
    )
    assert config.generation_config == "vllm"
    assert config.override_generation_config == {"temperature": 0.5}
    assert EngineConfig().generation_config == "auto"
    with pytest.raises(ConfigError, match="--override-generation-config"):
        EngineConfig.from_args(["--override-generation-config", "temperature=1"], {})
