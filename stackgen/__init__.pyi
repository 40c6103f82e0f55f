from stackgen.client import Answer as Answer
from stackgen.client import AsyncClient as AsyncClient
from stackgen.client import Client as Client

__all__ = ["Answer", "AsyncClient", "Client", "__version__"]

__version__: str
