"""From a pool and a feature map to variances and a batch worth labelling."""

from selectron.screening.catalogue import Catalogue, catalogue
from selectron.screening.outputs import draw, pick_rows, write_picks, write_scored, write_scores
from selectron.screening.progress import Progress, Silent
from selectron.screening.result import Pick, Screening
from selectron.screening.screen import check_selection, default_checks, screen

__all__ = [
    "Catalogue",
    "Pick",
    "Progress",
    "Screening",
    "Silent",
    "catalogue",
    "check_selection",
    "default_checks",
    "draw",
    "pick_rows",
    "screen",
    "write_picks",
    "write_scored",
    "write_scores",
]
