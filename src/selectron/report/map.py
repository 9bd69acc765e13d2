"""The map of a selection: pool, training set and picks in a plane of the feature space, as PNG and as HTML."""

from selectron.report.map_data import FeatureMapData
from selectron.report.map_html import write_html
from selectron.report.map_png import draw_png

__all__ = ["FeatureMapData", "draw_png", "write_html"]
