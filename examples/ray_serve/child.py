"""Run Glasshouse's server in a process that ends when its replica does, however that ends.

The arguments are the replica's process id, then the server's own:
`python -m examples.ray_serve.child PID --uds PATH …`.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Imported here: the server's engine process imports this file again, and needs none of it.
    from engine.child_process import end_with_parent
    from engine.server.command import main

    end_with_parent(int(sys.argv.pop(1)))
    sys.exit(main(name="ray_serve"))
