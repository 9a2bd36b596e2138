"""Start `python -m course`."""

from __future__ import annotations

import sys

from course.grade import main

sys.exit(main())
