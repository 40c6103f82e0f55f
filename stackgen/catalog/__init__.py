"""The catalog of models: facts from vLLM's recipes and documentation. Pure: reads files, and sends no request."""

from stackgen.catalog.entry import Entry, Snapshot, Variant
from stackgen.catalog.lookup import (
    Access,
    Fact,
    Match,
    find_access,
    find_model,
    find_non_thinking,
    find_parser,
    find_parsers,
    find_sglang_parsers,
    find_tool_parser,
    find_variant_parser,
    match_variant,
)
from stackgen.catalog.store import Catalog, load_catalog, load_packaged

__all__ = [
    "Access", "Catalog", "Entry", "Fact", "Match", "Snapshot", "Variant", "find_access", "find_model",
    "find_non_thinking", "find_parser", "find_parsers", "find_sglang_parsers", "find_tool_parser",
    "find_variant_parser", "load_catalog", "load_packaged", "match_variant",
]  # fmt: skip
