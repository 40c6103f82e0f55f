"""Memory of a model on a GPU, before anything is downloaded. Pure: starts no program, and sends no request."""

from stackgen.fit.architecture import Architecture
from stackgen.fit.estimate import Change, Estimate, Model, estimate
from stackgen.fit.gpus import Gpu, find_gpu
from stackgen.fit.settings import Settings
from stackgen.fit.source import read_model
from stackgen.fit.terms import Term
from stackgen.fit.weights import Weights

__all__ = [
    "Architecture", "Change", "Estimate", "Gpu", "Model", "Settings", "Term", "Weights", "estimate", "find_gpu",
    "read_model",
]  # fmt: skip
