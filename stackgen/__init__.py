"""stackgen: Docker Compose stacks that serve language models, started and proven to work.

`__init__.pyi` tells type checkers the same: an import here, even for them alone, would let every room that needs the
version depend on the clients.
"""

from importlib import import_module as _import_module

__all__ = ["Answer", "AsyncClient", "Client", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # the command line imports this package for every command: the clients come when they are asked for
    if name in __all__:
        return getattr(_import_module("stackgen.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
