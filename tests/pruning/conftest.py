"""Helpers that the tests of pruning share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for adversarial.py, which a benchmark uses too
