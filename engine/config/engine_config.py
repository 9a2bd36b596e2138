"""Hold the checked options of one engine. All other code reads them from here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import sources
from engine.config.accepted import passes
from engine.config.checks import check, settle_types
from engine.config.option_types import ConfigError
from engine.config.options import FIELDS, POCKET_MODEL, Options
from engine.config.speculative import SPECULATIVE_ROWS, Speculation, speculation


@dataclass
class EngineConfig(Options):
    """Hold all options of the engine and its server. Raises `ConfigError` for impossible ones."""

    def __post_init__(self) -> None:
        settle_types(self)
        check(self)
        if not self.served_model_name:
            path = Path(self.model)
            name = path.name if path.exists() else self.model
            self.served_model_name = ["pocket" if self.model == POCKET_MODEL else name]

    @property
    def model_name(self) -> str:
        """Return the name of the model in answers, metrics and the log."""
        return self.served_model_name[0]

    @property
    def speculation(self) -> Speculation | None:
        """Return how tokens are proposed; None: they aren't."""
        return speculation(self.speculative_config)

    @property
    def max_step_rows(self) -> int:
        """Return the most rows of a step: one for each seat, and those of proposed tokens."""
        asked = self.speculation
        if asked is None:
            return self.max_num_seqs
        with_proposed = self.max_num_seqs * (1 + asked.num_speculative_tokens)
        return max(self.max_num_seqs, min(SPECULATIVE_ROWS, with_proposed))

    def public(self) -> dict[str, Any]:
        """Return all options by name, with secrets replaced by "***": safe to log, record and
        show."""
        return {
            name: "***" if field.metadata["secret"] and getattr(self, name) else getattr(self, name)
            for name, field in FIELDS.items()
        }

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> EngineConfig:
        """Read Python arguments. Arguments of vLLM that ask for what is done anyway are accepted.

        Raises `ConfigError` for a name that is no option.
        """
        own = {name: value for name, value in options.items() if name in FIELDS}
        for name in options.keys() - own.keys():
            if not passes(name, name, options[name]):
                raise ConfigError(f"{name} is no option; `python -m engine.config` lists them.")
        return cls(**own)

    @classmethod
    def from_args(
        cls,
        argv: Sequence[str] | None = None,
        environ: Mapping[str, str] | None = None,
        prog: str | None = None,
    ) -> EngineConfig:
        """Read flags, a `--config` file and the environment; the first that names an option wins.

        Raises `ConfigError`; `--help` prints the options and exits.
        """
        return cls(**sources.values(argv, environ, prog))
