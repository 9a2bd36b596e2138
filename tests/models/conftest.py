from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # paged_harness and tiny_models, for these tests

torch.set_num_threads(1)  # tiny matrices: a second thread only waits
