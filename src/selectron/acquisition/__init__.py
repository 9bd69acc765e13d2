"""Acquisition: which structures are worth a label, given feature rows of the training set and of the pool."""

from .committee import CommitteeDisagreement, committee_disagreement
from .duplicates import duplicate_groups
from .embedding import structure_embedding
from .greedy import Selection
from .ipv import PoolWeight
from .moment import SecondMoment
from .posterior import Posterior
from .scale import Scale, default_scale
from .select import SELECTORS, SelectorInfo, select_batch
from .shortlist import Shortlist

__all__ = [
    "SELECTORS",
    "CommitteeDisagreement",
    "PoolWeight",
    "Posterior",
    "Scale",
    "SecondMoment",
    "Selection",
    "SelectorInfo",
    "Shortlist",
    "committee_disagreement",
    "default_scale",
    "duplicate_groups",
    "select_batch",
    "structure_embedding",
]
