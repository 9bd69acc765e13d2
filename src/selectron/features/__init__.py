"""Feature maps: from a batch of structures to feature rows."""

from selectron.features.activation import ActivationFeatures
from selectron.features.base import FeatureMap
from selectron.features.energy_ntk import EnergyNTKFeatures
from selectron.features.extract import extract
from selectron.features.force_ntk import ForceNTKFeatures, JointNTKFeatures
from selectron.features.registry import FEATURES, FeatureInfo, FeatureOptions, make_features
from selectron.features.soap import SoapFeatures
from selectron.features.store import FeatureStore, default_cache

__all__ = [
    "FEATURES",
    "ActivationFeatures",
    "EnergyNTKFeatures",
    "FeatureInfo",
    "FeatureMap",
    "FeatureOptions",
    "FeatureStore",
    "ForceNTKFeatures",
    "JointNTKFeatures",
    "SoapFeatures",
    "default_cache",
    "extract",
    "make_features",
]
