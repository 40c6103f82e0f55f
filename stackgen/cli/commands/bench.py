"""`stackgen bench`: measures a running stack with GuideLLM, and compares two runs."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from stackgen.bench.guidellm import NAME, VERSION, Plan
from stackgen.bench.limits import Limits, judge
from stackgen.bench.page import as_html
from stackgen.bench.result import FOLDER, RESULT, Run, find_result, read_run
from stackgen.bench.tokenizer import find_tokenizer
from stackgen.check.report.plots import format_duration
from stackgen.check.target import Target
from stackgen.cli.commands.output import note, print_data, write_text
from stackgen.cli.commands.runtime import find_runtime
from stackgen.cli.scrub import scrub_json
from stackgen.client.attempts import FirstRequest, send_requests
from stackgen.connect.served import ServedModel, choose_model, find_models
from stackgen.errors import MachineError, StackgenError, StartError
from stackgen.providers.targets import targets_from_plan
from stackgen.runtimes.compose.volume_files import find_mountpoint
from stackgen.runtimes.process.load_generator import measure
from stackgen.runtimes.process.local_plan import open_process_stack
from stackgen.runtimes.process.procfs import STATE_DIR
from stackgen.runtimes.process.tool_environment import find_environment, make_environment
from stackgen.spec import is_local
from stackgen.stack.folder import Stack, open_stack

__all__ = ["bench"]

STREAMS = (1.0, 2.0, 4.0, 8.0, 16.0)
PAGE = "report.html"
IN_CLUSTER = (
    "a port that kubectl forwards would limit the throughput. Measure inside the cluster: run GuideLLM or `vllm bench "
    "serve` in a pod, with the gateway's URL"
)
PROMPTS_HINT = 'each line must be JSON such as {"prompt": "Hi"}'
# seconds for the first request: a cold engine compiles
FIRST_TIMEOUT = 120.0


def bench(args: Namespace) -> int:
    """Runs `stackgen bench`. Returns 1 if a request failed, or if no level keeps the limits."""
    limits = Limits(args.max_ttft, args.max_itl, args.max_latency)
    if args.compare:
        return _compare(args, limits)
    if args.html:
        raise StackgenError("--html is for `stackgen bench compare`", f"a run writes {PAGE} into its own folder")
    stack = open_stack(args.stack).for_one_machine(IN_CLUSTER)
    run, folder = _measure(args, stack)
    write_text(str(folder / RESULT), json.dumps(scrub_json(run.to_json()), indent=2) + "\n")
    write_text(str(folder / PAGE), as_html([run], limits))
    data = run.to_json() | {"folder": str(folder)}
    if limits:
        data["limits"] = judge(run, limits).to_json()
    print_data(args, data, [*_lines(run, limits), f"page: {folder / PAGE}"])
    no_level = bool(limits) and judge(run, limits).holds is None
    return 1 if no_level or any(level.failed for level in run.levels) else 0


def _compare(args: Namespace, limits: Limits) -> int:
    if len(args.compare) != 2:
        raise StackgenError(f"`compare` got {len(args.compare)} runs instead of two",
                            "use `stackgen bench compare A B`")  # fmt: skip
    runs = [read_run(find_result(one)) for one in args.compare]
    if runs[0].kind != runs[1].kind:
        raise StackgenError(f"the runs have different loads: {runs[0].unit} and {runs[1].unit}",
                            "measure both with --concurrency, or both with --rates")  # fmt: skip
    lengths = [(run.prompt_tokens, run.output_tokens) for run in runs]
    if lengths[0] != lengths[1]:
        note("the runs have prompts or answers of different lengths, which also changes their figures")
    page = args.html or str(find_result(args.compare[1]).parent / "compare.html")
    write_text(page, as_html(runs, limits))
    data: dict[str, Any] = {"runs": [run.to_json() for run in runs], "page": page}
    if limits:
        data["limits"] = [judge(run, limits).to_json() for run in runs]
    lines = [line for run in runs for line in (run.title, *_lines(run, limits), "")]
    print_data(args, data, [*lines, *_differences(*runs), f"page: {page}"])
    return 0


def _measure(args: Namespace, stack: Stack) -> tuple[Run, Path]:
    local = find_runtime(args, stack.folder) == "process"
    plan = open_process_stack(Path(args.stack), STATE_DIR).plan if local else stack.plan
    model, name = choose_model(find_models(plan, stack.spec.models), args.model)
    targets = targets_from_plan(plan, stack.folder)
    target = next(one for one, own in zip(targets, plan.endpoints, strict=True) if own is model.endpoint)
    target = replace(target, models=(name,))
    length = model.own_length
    if not args.prompts and length and args.prompt_tokens + args.output_tokens > length:
        raise StackgenError(
            f"{args.prompt_tokens} tokens of prompt and {args.output_tokens} of answer don't fit into the context of "
            f"{length} tokens", "choose smaller numbers with --prompt-tokens and --output-tokens")  # fmt: skip
    prompts = _find_prompts(args.prompts) if args.prompts else None
    tokenizer = "" if prompts else args.tokenizer or _find_tokenizer(stack, model)
    _require_answer(target, name)
    python = find_environment(NAME, VERSION) or make_environment(NAME, VERSION, note, torch=True)
    what = Plan(
        target.root, name, "rate" if args.rates else "concurrency",
        args.rates or args.concurrency or STREAMS, args.seconds, args.requests, tokenizer, prompts,
        args.prompt_tokens, args.output_tokens,
    )  # fmt: skip
    started = datetime.now(timezone.utc)
    folder = _make_folder(stack.folder, started)
    loads = f"{len(what.loads)} load{'s' * (len(what.loads) > 1)}"
    note(f"GuideLLM {VERSION} measures {name} at {target.root} under {loads}, at most {format_duration(what.seconds)} "
         "each")  # fmt: skip
    levels = measure(python, what, target, folder, _progress())
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return Run(
        stack.spec.name, name, model.engine, f"{NAME} {VERSION}", started.isoformat(timespec="seconds"), what.kind,
        None if prompts else what.prompt_tokens, what.output_tokens, what.seconds, levels,
    ), folder  # fmt: skip


def _require_answer(target: Target, model: str) -> None:
    """Raises StartError unless the model answers a request: GuideLLM needs a minute to find that out."""
    body = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    request = FirstRequest("first request", "POST", "/v1/chat/completions", "chat", body)
    for attempt in send_requests(target, [request], FIRST_TIMEOUT):
        if not attempt.ok:
            raise StartError(
                f"{model} does not answer at {target.root}: {attempt.problem}",
                "start the stack with `stackgen up`; if it is running, test it with `stackgen check`",
            )


def _find_tokenizer(stack: Stack, model: ServedModel) -> str:
    spec = next((one for one in stack.spec.models if one.model == model.source), None)
    stores: list[Path] = []
    if not is_local(model.source):
        storage = stack.spec.storage
        if storage.path:
            stores.append(stack.folder / Path(storage.path).expanduser())
        else:
            # without Docker, or without permission to read its folder, the Hub has the tokenizer
            try:
                stores.append(Path(find_mountpoint(storage.volume)))
            except StackgenError:
                pass
    found = find_tokenizer(model.source, getattr(spec, "revision", None), stores, stack.folder)
    if not is_local(found):
        note(f"the tokenizer of {found} is not in a folder that this user can read: GuideLLM loads it from the Hub")
    return found


def _find_prompts(text: str) -> Path:
    path = Path(text).absolute()
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(next(file, ""))
    except (OSError, ValueError) as error:
        raise StackgenError(f"{text} can't be read: {error}", PROMPTS_HINT) from None
    if not isinstance(first, dict) or not isinstance(first.get("prompt"), str):
        raise StackgenError(f"{text}: the first line has no field `prompt`", PROMPTS_HINT)
    return path


def _make_folder(stack: Path, started: datetime) -> Path:
    folder = stack / FOLDER / started.strftime("%Y%m%d-%H%M%S")
    try:
        folder.mkdir(parents=True)
        # results belong to one machine
        (stack / FOLDER / ".gitignore").write_text("*\n", "utf-8")
    except OSError as error:
        raise MachineError(
            f"{folder} can't be created: {error.strerror or error}", "check the owner of the folder"
        ) from None
    return folder


def _progress() -> Callable[[float], None]:
    if not sys.stderr.isatty():
        return lambda _: None
    return lambda seconds: print(f"\r  {format_duration(seconds)}  ", end="", file=sys.stderr, flush=True)


def _lines(run: Run, limits: Limits) -> list[str]:
    rows: list[tuple[str, ...]] = [
        (run.unit, "ok", "failed", "requests/s", "tokens/s", "TTFT p50", "p95", "ITL p50", "p95", "latency p95")
    ]
    for level in run.levels:
        times = [None if found is None else getattr(found, name)
                 for found, name in ((level.ttft, "p50"), (level.ttft, "p95"), (level.itl, "p50"), (level.itl, "p95"),
                                     (level.latency, "p95"))]  # fmt: skip
        rows.append(
            (level.name, str(level.succeeded), str(level.failed), f"{level.requests_per_second:.2f}",
             f"{level.tokens_per_second:.1f}", *("-" if one is None else format_duration(one) for one in times))
        )  # fmt: skip
    lines = _table(rows)
    lines += [f"{run.describe_load(level)}: {count} failed: {text}" for level in run.levels
              for text, count in level.errors]  # fmt: skip
    return [*lines, judge(run, limits).describe(run)] if limits else lines


def _differences(first: Run, second: Run) -> list[str]:
    others = {level.load: level for level in second.levels}
    rows: list[tuple[str, ...]] = [(first.unit, "tokens/s", "TTFT p95", "ITL p95")]
    for level in first.levels:
        if other := others.get(level.load):
            pairs = [(level.tokens_per_second, other.tokens_per_second),
                     *((getattr(level, name), getattr(other, name)) for name in ("ttft", "itl"))]  # fmt: skip
            rows.append((level.name, *(_ratio(*pair) for pair in pairs)))
    return [f"{second.title} compared with {first.title}:", *_table(rows), ""] if len(rows) > 1 else []


def _ratio(first: Any, second: Any) -> str:
    before, after = (getattr(one, "p95", one) for one in (first, second))
    return f"{after / before:.2f}x" if before and after is not None else "-"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
