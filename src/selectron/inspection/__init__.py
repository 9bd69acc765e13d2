"""What selectron sees in files, before anything is spent on them.

Each census counts one thing (elements, keys, labels, repeats, ...) in structures that it is shown one by one; ``look.py`` shows
them, ``result.py`` holds what came of it, the command line and the caller read it. Without a model nothing here imports torch.
"""

from __future__ import annotations

from selectron.inspection.files import inspect
from selectron.inspection.result import Inspection

__all__ = ["Inspection", "inspect"]
