"""Read options from flags, from the file of `--config`, and from the environment.

A flag wins over the file, the file over the environment, the environment over the default.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from engine.config.accepted import ACCEPTED, BY_NAME, passes
from engine.config.option_types import ConfigError, from_text
from engine.config.options import FIELDS, KINDS, default_text, env_name, flag_of

_POSITIONAL = "positional model"
_FILE = "config"


def values(
    argv: Sequence[str] | None, environ: Mapping[str, str] | None, prog: str | None
) -> dict[str, Any]:
    """Return the options that are named anywhere, by field name. Raises `ConfigError`."""
    given = vars(_parser(prog).parse_args(argv))
    flags = _of_flags(given)
    file = _of_file(given[_FILE]) if _FILE in given else {}
    return {**_of_environment(os.environ if environ is None else environ), **file, **flags}


# ------------------------------------------------------------------------------ the command line


class _Parser(argparse.ArgumentParser):
    """Parse flags like argparse, but allow underscores in them, and raise `ConfigError`."""

    def parse_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else args
        return super().parse_args([_dashed(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. --help lists every option.")


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        description="Glasshouse: an LLM serving engine you can see through.",
        epilog="Flags of vLLM that ask for what this engine does anyway are accepted too.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        _POSITIONAL, nargs="?", metavar="MODEL", help="the model; the same as --model"
    )
    parser.add_argument(
        flag_of(_FILE), metavar="FILE", help="a YAML file of options; flags win over it"
    )
    for name, field in FIELDS.items():
        kind = KINDS[name]
        shown = f" [{default_text(name)}]" if default_text(name) else ""
        text = f"{field.metadata['help']}{shown} (env {env_name(name)})".replace("%", "%%")
        flags = [flag_of(name)] + ([field.metadata["short"]] if field.metadata["short"] else [])
        if kind.base is bool:
            parser.add_argument(*flags, action=argparse.BooleanOptionalAction, help=text)
        else:
            metavar = "{" + ",".join(kind.choices) + "}" if kind.choices else kind.base.__name__
            number = {"nargs": "+"} if kind.many else {}
            parser.add_argument(*flags, metavar=metavar, help=text, **number)  # type: ignore[arg-type]
    for one in ACCEPTED:
        flags = [flag_of(one.name)] + ([one.short] if one.short else [])
        switch = {"action": "store_const", "const": "true"} if one.is_switch else {}
        parser.add_argument(*flags, dest=one.name, help=argparse.SUPPRESS, **switch)  # type: ignore[arg-type]
    return parser


def _of_flags(given: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in given.items():
        if name in FIELDS:
            is_text = not isinstance(value, bool)
            found[name] = from_text(flag_of(name), value, KINDS[name]) if is_text else value
        elif name in BY_NAME:
            BY_NAME[name].check(flag_of(name), value)
    positional = given.get(_POSITIONAL)
    if positional is not None and found.setdefault("model", positional) != positional:
        raise ConfigError(
            f"the model is {positional!r} and --model is {found['model']!r}; give one of them."
        )
    return found


# ------------------------------------------------------------------------------------ the file


def _of_file(name: str) -> dict[str, Any]:
    """Return the options of a YAML file: its keys are flags without their dashes."""
    import yaml  # few servers have such a file

    where = f"--config {name}"
    try:
        content = yaml.safe_load(Path(name).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: the file can't be read ({error}).") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is no valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{where} must hold options, one a line, such as `port: 8000`.")
    found: dict[str, Any] = {}
    for written, value in content.items():
        key = str(written)
        option = key.replace("-", "_")
        negated = option.removeprefix("no_")
        if option not in FIELDS and negated in FIELDS and isinstance(value, bool):
            option, value = negated, not value
        if option in FIELDS:
            if option in found:
                raise ConfigError(f"{where} names {key} twice.")
            found[option] = _written(f"{where}: {key}", option, value)
        elif not passes(f"{where}: {key}", key, value):
            raise ConfigError(f"{where} has {key!r}, which is no option. --help lists them.")
    return found


def _written(where: str, option: str, value: Any) -> Any:
    """Convert a value of the file.

    YAML has its own numbers, lists and switches; a text is read as a flag's.
    """
    kind = KINDS[option]
    if isinstance(value, str):
        return from_text(where, value, kind)
    if kind.many and isinstance(value, list):
        return [str(item) for item in value]
    if kind.base is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return [str(value)] if kind.many else str(value)  # a name may look like a number
    return value


# --------------------------------------------------------------------------------- environment


def _of_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the options of the environment. An empty variable counts as unset.

    Spaces and line ends around a value are left out: forms and files of secrets add them unseen.
    """
    texts = {name: environ.get(env_name(name), "") for name in FIELDS}
    texts = {name: text.strip() or text for name, text in texts.items()}
    return {
        name: from_text(env_name(name), text, KINDS[name]) for name, text in texts.items() if text
    }
