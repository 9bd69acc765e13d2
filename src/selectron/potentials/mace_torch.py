"""mace-torch and e3nn, imported in the order that works and without what they print.

``mace`` must come before ``e3nn``: it makes e3nn 0.4.4 load under torch >= 2.6.
"""

from __future__ import annotations

import contextlib
import io
import warnings

with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # it prints which accelerators are missing
    warnings.simplefilter("ignore")
    import mace  # noqa: F401
    from e3nn import o3
    from mace.modules.models import MACE, ScaleShiftMACE

__all__ = ["MACE", "ScaleShiftMACE", "o3"]
