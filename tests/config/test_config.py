"""One declaration: Python arguments, flags, environment and the docs' table agree, and nonsense is
refused.
"""

from __future__ import annotations

import dataclasses
import re

import pytest

from engine.config import ConfigError, EngineConfig
from engine.config.accepted import ACCEPTED
from engine.config.table import options_table

FLAGS_OF_VLLM = [
    "--model",
    "--served-model-name",
    "--host",
    "--port",
    "--api-key",
    "--dtype",
    "--max-model-len",
    "--block-size",
    "--gpu-memory-utilization",
    "--kv-cache-memory-bytes",
    "--num-gpu-blocks-override",
    "--max-num-seqs",
    "--max-num-batched-tokens",
    "--enable-prefix-caching",
    "--no-enable-prefix-caching",
    "--preemption-mode",
    "--swap-space",
    "--scheduling-policy",
    "--scheduler-cls",
    "--max-num-queued-reqs",
    "--tensor-parallel-size",
    "--quantization",
    "--enforce-eager",
    "--chat-template",
    "--seed",
    "--device",
    "--trace",
    "--log-format",
]


def test_every_promised_flag_is_in_the_table():
    table = options_table()
    assert [flag for flag in FLAGS_OF_VLLM if f"`{flag}`" not in table] == []


def test_table_has_every_option_once():
    table, _, accepted = options_table().partition("\n\n")
    rows = re.findall(r"^\| `(--[a-z-]+)`", table, re.M)
    names = [f.name for f in dataclasses.fields(EngineConfig)]
    assert rows == ["--" + name.replace("_", "-") for name in names]
    assert [f"`--{one.name}`" for one in ACCEPTED if f"`--{one.name}`" not in accepted] == []


def test_flag_wins_over_environment_wins_over_default():
    environ = {"PORT": "9000", "MODEL_NAME": "a/b", "API_KEY": "k", "HF_TOKEN": "t", "SEED": ""}
    config = EngineConfig.from_args(["--port", "9001"], environ)
    assert (config.port, config.model, config.api_key, config.hf_token) == (9001, "a/b", ["k"], "t")
    assert config.seed == 0  # an empty variable counts as unset
    assert config.served_model_name == ["a/b"]


def test_a_path_is_served_under_its_last_part(tmp_path):
    (tmp_path / "model-q4_0.gguf").touch()
    for path in (tmp_path, tmp_path / "model-q4_0.gguf"):
        assert EngineConfig(model=str(path)).served_model_name == [path.name]


def test_booleans_both_ways():
    assert EngineConfig.from_args(["--no-enable-prefix-caching"], {}).enable_prefix_caching is False
    assert EngineConfig.from_args([], {"ENABLE_PREFIX_CACHING": "0"}).enable_prefix_caching is False
    assert EngineConfig.from_args([], {}).async_scheduling is None


def test_secrets_are_never_shown():
    config = EngineConfig(api_key="sesame", hf_token="hf_secret")
    assert "sesame" not in str(config.public()) and "hf_secret" not in str(config.public())
    assert config.public()["api_key"] == "***"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "99999"], "--port is 99999"),
        (["--port", "x"], "--port"),
        (["--block-size", "12"], "power of two"),
        (["--max-num-seqs", "0"], "at least 1"),
        (["--gpu-memory-utilization", "1.5"], "share"),
        (["--preemption-mode", "swap", "--swap-space", "0"], "--swap-space"),
        (["--tensor-parallel-size", "0"], "--tensor-parallel-size"),
        (["--device", "cpu", "--dtype", "float16"], "float16"),
        (["--api-key", ""], "anyone could pass"),
        (["--model", ""], "--model is empty"),
        (["--model", "/m/\udcc3\udcbc"], "set PYTHONUTF8=1"),
        (["--api-key", "a", "geheim\udcff"], "--api-key has bytes that are no text in this locale"),
        (["--max-num-seqs", "99999999999"], "--max-num-seqs is 99999999999; at most 65,536"),
        (["--cpu-threads", "1025"], "--cpu-threads is 1025; at most 1,024"),
        (["--api-server-count", "65"], "--api-server-count is 65; at most 64"),
        (["--scheduling-policy", "lottery"], "lottery"),
        (["--no-such-flag"], "no-such-flag"),
    ],
)
def test_the_impossible_is_refused_in_one_line(arguments, says):
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_args(arguments, {})
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert "geheim" not in str(caught.value)  # a key is never shown


def test_environment_is_checked_too():
    with pytest.raises(ConfigError, match="MAX_NUM_SEQS"):
        EngineConfig.from_args([], {"MAX_NUM_SEQS": "many"})


def test_python_arguments_are_checked_too():
    with pytest.raises(ConfigError, match="--max-num-seqs"):
        EngineConfig(max_num_seqs="8")
