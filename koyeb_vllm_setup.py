#!/usr/bin/env python3
"""The lab: `python koyeb_vllm_setup.py --quick --report lab.html`; `--help` lists the chapters."""

from __future__ import annotations

import sys


def main() -> int:
    """The exit code: 0 done, 2 the options, or the model that they name, can't be used."""
    from lab.command import Refused
    from lab.command import main as run_lab

    try:
        run_lab()
    except Refused as error:
        print(f"koyeb_vllm_setup: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
