"""Print the options as a Markdown table: `python -m engine.config`."""

import sys

from engine.config.table import options_table

sys.stdout.write(options_table() + "\n")
