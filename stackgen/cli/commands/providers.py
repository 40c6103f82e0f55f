"""`stackgen providers`: the matrix of providers, and which keys are found from here."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from stackgen.cli.commands.output import print_data
from stackgen.errors import StackgenError
from stackgen.providers.catalog import Provider, find_key
from stackgen.providers.catalog import providers as known
from stackgen.providers.endpoints import Place, open_place

__all__ = ["providers"]

# how a feature stands in the matrix; what no dialect names is not known before `stackgen check` tries it
SIGNS = {"depends": "depends", "yes": "yes", "no": "no", "ignored": "ignored", "": "?"}


def providers(args: Namespace) -> int:
    """`stackgen providers`: one row a provider, then the endpoints that are known here; keys are never printed."""
    place = open_place(args.stack, optional=args.stack == ".")
    rows, here = _rows(place), _here(place)
    print_data(args, {"providers": rows, "endpoints": here}, _lines(rows, here))
    return 0


def _rows(place: Place) -> list[dict[str, Any]]:
    rows = []
    for provider in known().values():
        key = find_key(provider.keys, (Path(), place.folder))
        url, problem = _url(provider)
        rows.append(
            {
                "name": provider.name,
                "title": provider.title,
                "base_url": url,
                "problem": problem,
                "url_variable": provider.url_variable or None,
                "keys": ["--api-key", *provider.keys],
                "key_found": {"name": key.name, "place": key.place} if key else None,
                "supports": provider.supports(),
                "source": provider.source,
            }
        )
    return rows


def _url(provider: Provider) -> tuple[str | None, str | None]:
    """The base URL, or what is wrong with the variable that names it: the rest of the matrix is told all the same."""
    try:
        return provider.base_url, None
    except StackgenError as error:
        return None, error.message


def _here(place: Place) -> list[dict[str, Any]]:
    return [
        {
            "name": one.target.name,
            "base_url": one.target.base_url,
            "models": list(one.target.models),
            "dialect": one.target.dialect.name if one.target.dialect else None,
            # a stack's key and a named endpoint's own variable are found elsewhere than a provider's
            "has_key": one.target.api_key is not None,
            "stack": one.stack.spec.name if one.stack else None,
        }
        for one in place.found()
    ]


def _lines(rows: list[dict[str, Any]], here: list[dict[str, Any]]) -> list[str]:
    table: list[tuple[str, ...]] = [("provider", "", "base URL", "key found")]
    for row in rows:
        found = row["key_found"]
        told = f"{found['name']} ({found['place']})" if found else f"none of {', '.join(row['keys'][1:])}"
        table.append((row["name"], row["title"], row["base_url"] or row["problem"], told))
    features = sorted({feature for row in rows for feature in row["supports"]})
    matrix: list[tuple[str, ...]] = [("supports", *(row["name"] for row in rows))]
    matrix += [(feature, *(SIGNS[row["supports"].get(feature, "")] for row in rows)) for feature in features]
    lines = [*_aligned(table), "", *_aligned(matrix)]
    if here:
        found_here: list[tuple[str, ...]] = [("endpoint here", "base URL", "models", "key")]
        for one in here:
            models = ", ".join(one["models"]) or "any"
            found_here.append((one["name"], one["base_url"], models, "found" if one["has_key"] else "none"))
        lines += ["", *_aligned(found_here)]
    return [*lines, "", "A key comes from --api-key, else the environment, else .env here, else the stack's .env."]


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
