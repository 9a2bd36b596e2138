"""Run Glasshouse's server in a process that ends when its replica does, however that ends.

The arguments are the server's own: `python -m examples.ray_serve.child --uds PATH …`.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Imported here: the server's engine process imports this file again, and needs none of it.
    from engine.server.command import main
    from engine.server.link.engine_process import end_with_parent

    end_with_parent()
    sys.exit(main(name="ray_serve"))
