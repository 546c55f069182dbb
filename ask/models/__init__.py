"""Networks with named layers, and feature functions of any PyTorch module."""

from typing import TYPE_CHECKING

from ask.lazy import exports

if TYPE_CHECKING:
    from ask.models.hooks import hook_features
    from ask.models.networks import Network, build, load_network

__all__ = ["Network", "build", "hook_features", "load_network"]
__getattr__ = exports(
    __name__, {"hook_features": "hooks"} | dict.fromkeys(("Network", "build", "load_network"), "networks")
)
