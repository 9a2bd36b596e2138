"""Every option of the engine and its server, declared once.

options.py       the declaration: each option's name, type, default and help
kinds.py         what an option's type takes, and how a text becomes such a value
checks.py        which values, and which of them together, are possible
accepted.py      flags of vLLM that ask for what this engine does anyway
sources.py       flags, a file and the environment, and which of them wins
engine_config.py EngineConfig, what all others read
table.py         the options as a table for the docs (`python -m engine.config`)
"""

from engine.config.engine_config import EngineConfig
from engine.config.kinds import ConfigError
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
