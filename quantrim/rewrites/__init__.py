"""Exact rewrites of a graph, and the clock that chooses among them.

Each file holds one rewrite: its rule and how exact it is stand before the code.
"""

from quantrim.rewrites.argmax import ARG_MAX
from quantrim.rewrites.base import Draft, Rewrite, Site
from quantrim.rewrites.branches import BRANCHES
from quantrim.rewrites.catalog import REWRITES, everywhere, rewritten, sites_of
from quantrim.rewrites.files import TunedFile, tune_file
from quantrim.rewrites.image import give_answer, take_images
from quantrim.rewrites.memory import Memory, default_path
from quantrim.rewrites.moves import MOVES
from quantrim.rewrites.proof import prove
from quantrim.rewrites.resize_matmul import RESIZE_AS_MATMULS
from quantrim.rewrites.resize_order import RESIZE_ORDER
from quantrim.rewrites.shuffle import CHANNEL_SHUFFLE
from quantrim.rewrites.stem import SPACE_TO_DEPTH_STEM
from quantrim.rewrites.tuner import Trial, Tuned, tune
from quantrim.rewrites.widths import PADDED_WIDTHS

__all__ = [
    "ARG_MAX", "BRANCHES", "CHANNEL_SHUFFLE", "MOVES", "PADDED_WIDTHS", "RESIZE_AS_MATMULS", "RESIZE_ORDER",
    "REWRITES", "SPACE_TO_DEPTH_STEM", "Draft", "Memory", "Rewrite", "Site", "Trial", "Tuned", "TunedFile",
    "default_path", "everywhere", "give_answer", "prove", "rewritten", "sites_of", "take_images", "tune",
    "tune_file",
]  # fmt: skip
