#!/usr/bin/env python3
"""Run the lab: `python koyeb_vllm_setup.py --quick --report lab.html`.

`--help` lists the chapters.
"""

from __future__ import annotations

from engine.trace.command import run_command
from lab.command import main

if __name__ == "__main__":
    run_command(main)
