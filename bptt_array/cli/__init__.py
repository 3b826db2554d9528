"""The command line: ``python -m bptt_array`` or ``bptt-array``."""

from .flags import parser
from .start import main

__all__ = ["main", "parser"]
