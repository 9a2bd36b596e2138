"""Write the options as Markdown tables, for the docs."""

from __future__ import annotations

from engine.config.accepted import accepted_table
from engine.config.options import FIELDS, KINDS, default_text, env_name, flag_of

_SEVERAL = "several: after spaces; in the environment a JSON list"
_OBJECT = "a JSON object"


def options_table() -> str:
    """Return a table of every option, then of the accepted flags of vLLM."""
    lines = ["| flag | environment | default | what it does |", "|---|---|---|---|"]
    lines.append("| `MODEL`, before or after the flags | | | the same as `--model` |")
    lines.append(
        "| `--config FILE` | | | a YAML file of options (`max-num-seqs: 8`): flags win over it, it"
        " wins over the environment |"
    )
    for name, field in FIELDS.items():
        kind, flag = KINDS[name], flag_of(name)
        flags = [flag, f"--no-{flag[2:]}"] if kind.base is bool else [flag]
        flags += [field.metadata["short"]] if field.metadata["short"] else []
        shown = ", ".join(f"`{one}`" for one in flags)
        default = f"`{default_text(name)}`" if default_text(name) else ""
        text = field.metadata["help"]
        text += f" ({_SEVERAL})" if kind.many else f" ({_OBJECT})" if kind.base is dict else ""
        lines.append(f"| {shown} | `{env_name(name)}` | {default} | {text} |")
    return "\n".join([*lines, "", _ACCEPTED_TITLE, "", accepted_table()])


_ACCEPTED_TITLE = """\
Flags may be written with underscores, and whole numbers as `2k` (2,000), `2K` (2,048), `2G`, or
`auto`. These flags of vLLM ask for what this engine does anyway; they pass with these values, and
are refused with others:"""
