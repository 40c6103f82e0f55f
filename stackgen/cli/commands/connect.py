"""`stackgen connect`: the settings of other programs for a stack, their known problems, and their first requests."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stackgen.check.target import Target
from stackgen.cli.commands.output import exit_interrupted, exit_on_interrupt, note, print_data, print_line
from stackgen.cli.commands.runtime import find_runtime
from stackgen.client.attempts import Attempt, FirstRequest, send_requests
from stackgen.connect.key import ClientKey, find_key
from stackgen.connect.problems import Problem, find_access_problems, find_problems
from stackgen.connect.recipe import KEY, Recipe, load_recipe, recipe_names
from stackgen.connect.report import list_rows, problem_lines, settings_json, settings_lines
from stackgen.connect.requests import fill_requests
from stackgen.connect.served import ServedModel, choose_model, find_models
from stackgen.connect.settings import Connection, Settings, build_settings, describe, fit_output
from stackgen.errors import StackgenError
from stackgen.plan import Plan
from stackgen.providers.targets import targets_from_plan
from stackgen.runtimes.process.local_plan import open_process_stack
from stackgen.runtimes.process.procfs import STATE_DIR
from stackgen.stack.folder import Stack, open_stack

__all__ = ["connect"]

# fields of a recipe in the JSON of the list
LISTED = {"name", "title", "about", "version", "measured", "evidence", "source", "needs", "also", "base_url"}


@dataclass(frozen=True, slots=True)
class _Found:
    """Everything that the command has found out about the client and the stack."""

    recipe: Recipe
    model: ServedModel
    target: Target
    connection: Connection
    settings: Settings
    problems: list[Problem]


def connect(args: Namespace) -> int:
    """Runs `stackgen connect`. Returns 1 if `--try` sees a request fail. Raises StackgenError for wrong input."""
    if args.client is None:
        return _list(args)
    found = _find(args)
    if args.try_requests and not found.target.api_key:
        where = (
            f"set {KEY} to the key of {args.key}" if args.key else ("run `stackgen up`, which writes the key into .env")
        )
        raise StackgenError("the key is not known, so no request can be sent", where)
    data = {"engine": found.model.engine, "gateway": found.model.has_gateway,
            **settings_json(found.recipe, found.settings, found.connection, found.problems)}  # fmt: skip
    if not args.json:
        for line in problem_lines(found.recipe, found.problems):
            note(line)
        lines = settings_lines(found.recipe, found.settings, found.connection, describe(found.model))
        print_data(args, data, lines, has_new_key=args.show_key)
    failed = False
    if args.try_requests:
        attempts = _try(args, found)
        failed = not all(attempt.ok for attempt in attempts)
        data["attempts"] = [_attempt_json(attempt) for attempt in attempts]
    if args.json:
        print_data(args, data, [], has_new_key=args.show_key)
    return 1 if failed else 0


def _list(args: Namespace) -> int:
    recipes = [load_recipe(name) for name in recipe_names()]
    rows = [("client", "version", "API", ""), *list_rows(recipes)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", "`stackgen connect CLIENT` prints the settings for the stack in the current folder."]
    data = [one.model_dump(mode="json", include=LISTED) for one in recipes]
    print_data(args, {"clients": data}, lines)
    return 0


def _find(args: Namespace) -> _Found:
    if args.client not in recipe_names() and Path(args.client).exists():
        raise StackgenError(
            f"{args.client} is a path, not a client",
            f"the client comes first: `stackgen connect CLIENT {args.client}`",
        )
    recipe, stack = load_recipe(args.client), open_stack(args.stack)
    plan = _find_plan(args, stack)
    models = find_models(plan, stack.spec.models)
    lists_models = recipe.lists_models and not args.model
    model, name = (models[0], "") if lists_models else choose_model(models, args.model)
    key = find_key(stack.folder, args.key, stack.spec.gateway, gateway=model.has_gateway, show=args.show_key)
    target = _find_target(plan, stack.folder, model, key)
    output_tokens = fit_output(recipe, model.context_length)
    ca_file = str(Path(target.ca_file).absolute()) if target.ca_file else ""
    connection = Connection(name, target.base_url, ca_file, key.name, key.line, model.context_length, output_tokens)
    # a client that lists the models meets all of them
    problems = [problem for one in (models if lists_models else [model]) for problem in find_problems(recipe, one)]
    problems += find_access_problems(recipe, model, ca_file, stack.spec.namespace if stack.site.is_cluster else "")
    if key.problem:
        problems.insert(0, Problem("does not work", key.problem))
    return _Found(recipe, model, target, connection, build_settings(recipe, connection), problems)


def _find_plan(args: Namespace, stack: Stack) -> Plan:
    if find_runtime(args, stack.folder) == "process":
        return open_process_stack(Path(args.stack), STATE_DIR).plan
    return stack.plan


def _find_target(plan: Plan, folder: Path, model: ServedModel, key: ClientKey) -> Target:
    targets = targets_from_plan(plan, folder)
    target = next(one for one, own in zip(targets, plan.endpoints, strict=True) if own is model.endpoint)
    return replace(target, api_key=key.value or None)


def _try(args: Namespace, found: _Found) -> list[Attempt]:
    connection, attempts = found.connection, list[Attempt]()
    model = connection.model or found.target.models[0]
    requests = [
        FirstRequest(one.name, one.method, one.path, one.api, one.body, one.headers, one.with_key,
                     one.max_answer_tokens, one.accept)
        for one in fill_requests(found.recipe, model, connection.output_tokens)
    ]  # fmt: skip
    try:
        with exit_on_interrupt():
            for attempt in send_requests(found.target, requests, args.timeout):
                attempts.append(attempt)
                if not args.json:
                    print_line(_attempt_line(attempt))
    except KeyboardInterrupt:
        exit_interrupted()
    if not args.json:
        good = sum(attempt.ok for attempt in attempts)
        print_line(f"# {good} of {len(attempts)} first requests of {found.recipe.title} work")
    return attempts


def _attempt_line(attempt: Attempt) -> str:
    request = f"{attempt.request.name}: {attempt.request.method} {attempt.request.path}"
    return f"# works  {request} ({attempt.seconds:.1f} s)" if attempt.ok else f"# fails  {request}: {attempt.problem}"


def _attempt_json(attempt: Attempt) -> dict[str, Any]:
    return {
        "name": attempt.request.name,
        "request": f"{attempt.request.method} {attempt.request.path}",
        "status": attempt.status,
        "seconds": attempt.seconds,
        "works": attempt.ok,
        "problem": attempt.problem or None,
    }
