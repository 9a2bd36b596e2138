"""Declare, read and check every option of the engine and its server.

- options.py: each option's name, type, default and help
- option_types.py: which values an option's type takes, and how text becomes such a value
- checks.py: which values, and which combinations of them, are possible
- accepted.py: flags of vLLM that ask for what this engine does anyway
- speculative.py: what `--speculative-config` may say
- sources.py: flags, a file and the environment, and which of them wins
- engine_config.py: `EngineConfig`, from which all other code reads its options
- table.py: the options as a table for the docs (`python -m engine.config`)
"""

from engine.config.engine_config import EngineConfig
from engine.config.option_types import ConfigError
from engine.config.options import BUDGET, CUDA_BUDGET, LOOPBACK, POCKET_MODEL, cache_folder

__all__ = [
    "BUDGET",
    "CUDA_BUDGET",
    "LOOPBACK",
    "POCKET_MODEL",
    "ConfigError",
    "EngineConfig",
    "cache_folder",
]
