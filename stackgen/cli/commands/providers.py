"""`stackgen providers`: prints the providers, what they support, and where their keys were found."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from stackgen.cli.commands.output import print_data
from stackgen.errors import StackgenError
from stackgen.providers.catalog import Provider, find_key
from stackgen.providers.catalog import providers as load_providers
from stackgen.providers.endpoints import EndpointSource, open_endpoint_source

__all__ = ["providers"]

# `?`: the provider's dialect does not describe the feature, and only `stackgen check` can find out
SUPPORT_LABELS = {"depends": "depends", "yes": "yes", "no": "no", "ignored": "ignored", "": "?"}


def providers(args: Namespace) -> int:
    """Runs `stackgen providers`: prints the providers, then the endpoints of the stack. Never prints a key."""
    # the default folder may have no stack; a path that was passed must exist
    source = open_endpoint_source(args.stack, optional=args.stack == ".")
    rows, endpoints = _provider_rows(source), _endpoint_rows(source)
    print_data(args, {"providers": rows, "endpoints": endpoints}, _format_tables(rows, endpoints))
    return 0


def _provider_rows(source: EndpointSource) -> list[dict[str, Any]]:
    rows = []
    for provider in load_providers().values():
        # the order that the last line of the output describes
        key = find_key(provider.key_names, (Path(), source.folder))
        url, problem = _find_base_url(provider)
        rows.append(
            {
                "name": provider.name,
                "title": provider.title,
                "base_url": url,
                "problem": problem,
                "url_variable": provider.url_variable or None,
                "keys": ["--api-key", *provider.key_names],
                "key_found": {"name": key.name, "place": key.place} if key else None,
                "supports": provider.feature_support(),
                "source": provider.source,
            }
        )
    return rows


def _find_base_url(provider: Provider) -> tuple[str | None, str | None]:
    """Returns (base URL, None), or (None, error) if the variable that sets the base URL is invalid."""
    # an invalid variable of one provider must not hide the other providers
    try:
        return provider.base_url, None
    except StackgenError as error:
        return None, error.message


def _endpoint_rows(source: EndpointSource) -> list[dict[str, Any]]:
    return [
        {
            "name": one.target.name,
            "base_url": one.target.base_url,
            "models": list(one.target.models),
            "dialect": one.target.dialect.name if one.target.dialect else None,
            # not find_key(), because stacks and named endpoints look for their keys in other places
            "has_key": one.target.api_key is not None,
            "stack": one.stack.spec.name if one.stack else None,
        }
        for one in source.resolve_all()
    ]


def _format_tables(rows: list[dict[str, Any]], endpoints: list[dict[str, Any]]) -> list[str]:
    table: list[tuple[str, ...]] = [("provider", "", "base URL", "key found")]
    for row in rows:
        found = row["key_found"]
        # skip --api-key, which is an option and not a variable
        key = f"{found['name']} ({found['place']})" if found else f"none of {', '.join(row['keys'][1:])}"
        table.append((row["name"], row["title"], row["base_url"] or row["problem"], key))
    features = sorted({feature for row in rows for feature in row["supports"]})
    matrix: list[tuple[str, ...]] = [("supports", *(row["name"] for row in rows))]
    matrix += [(feature, *(SUPPORT_LABELS[row["supports"].get(feature, "")] for row in rows)) for feature in features]
    lines = [*_align_columns(table), "", *_align_columns(matrix)]
    if endpoints:
        endpoint_table: list[tuple[str, ...]] = [("endpoint", "base URL", "models", "key")]
        for one in endpoints:
            models = ", ".join(one["models"]) or "any"
            endpoint_table.append((one["name"], one["base_url"], models, "found" if one["has_key"] else "none"))
        lines += ["", *_align_columns(endpoint_table)]
    return [
        *lines,
        "",
        "stackgen looks for an API key in this order: --api-key, the environment, .env in the current folder, .env of "
        "the stack.",
    ]


def _align_columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
