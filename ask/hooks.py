"""Feature functions at the path where earlier versions had them."""

from ask.models.hooks import hook_features

__all__ = ["hook_features"]
