"""Networks with named layers, and feature functions of any PyTorch module."""

from typing import TYPE_CHECKING

from ask.lazy import exports

if TYPE_CHECKING:
    from ask.models.hooks import hook_features, import_torchvision
    from ask.models.networks import Network, build, load_network

__all__ = ["Network", "build", "hook_features", "import_torchvision", "load_network"]
_HOOKS = dict.fromkeys(("hook_features", "import_torchvision"), "hooks")
__getattr__ = exports(__name__, _HOOKS | dict.fromkeys(("Network", "build", "load_network"), "networks"))
