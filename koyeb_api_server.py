#!/usr/bin/env python3
"""Start the server: `python koyeb_api_server.py --port …`; `--help` lists every option."""

from __future__ import annotations

import sys

from engine.server.command import main

if __name__ == "__main__":
    sys.exit(main())
