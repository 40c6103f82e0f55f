"""stackgen: renders Docker Compose stacks that serve language models, starts them, and checks that they work.

The types are in `__init__.pyi`. An import here, even under TYPE_CHECKING, would make every module that needs the
version depend on the clients.
"""

__all__ = ["Answer", "AsyncClient", "Client", "__version__"]

__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    # every command imports this package, so the clients' libraries are loaded only on first use
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("stackgen.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
