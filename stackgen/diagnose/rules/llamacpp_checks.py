"""Rules for checks of llama.cpp that fail while it runs, after which it stops itself and prints a backtrace.

None of these failures was reproduced. `source` names the files and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.error_lines import find_error_lines
from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.messages import find_messages
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["LAST_RULES", "RULES"]

ABORT = re.compile(r"\(ggml_abort\+0x")
FRAME = re.compile(r"\(\S*\+0x[0-9a-f]+\) ?\[0x")
# what ggml_abort prints above the backtrace
CHECK = re.compile(r"^\S+\.(?:cpp|cuh?|c|h|hpp|m|mm):\d+: (?P<check>\S.*)")

ASSERTION = re.compile(r"GGML_ASSERT\((?P<check>.{2,300}?)\) failed|: Assertion [`'](?P<native>.{2,200}?)' failed")


def _find_abort(evidence: Evidence) -> Iterator[Hit]:
    """The log has a backtrace of ggml_abort, and no error that explains it."""
    for service in evidence.services:
        lines = lines_since_ready(service.log) if "(ggml_abort+0x" in service.log else []
        place = next((index for index, line in enumerate(lines) if ABORT.search(line)), None)
        if place is None or any(one.certain for one in find_error_lines(lines[: place + 1])):
            continue
        plain = [text for line in lines[:place] if (text := strip_prefix(line).strip())]
        check = next((found for line in reversed(plain[-80:]) if (found := CHECK.match(line))), None)
        last = [line for line in plain if not FRAME.search(line)][-1:]
        shown = (check[0],) if check else tuple(last)
        yield Hit(service.service, (*shown, strip_prefix(lines[place]).strip()), check.groupdict() if check else {},
                  variant=None if check else CUT)  # fmt: skip


def _find_assertion(evidence: Evidence) -> Iterator[Hit]:
    """A check of llama.cpp's own code failed, or the log has a backtrace of ggml_abort without a check."""
    for message in find_messages(evidence, hints=True):
        if (found := ASSERTION.search(message.text)) and "llama" in message.service.log:
            values = {"check": found["check"] or found["native"]}
            yield Hit(message.service.service, (message.text,), values, highlight=found[0], variant=ASSERTED)
    yield from _find_abort(evidence)


ASSERTED = Variant(
    (),
    cause="a check in llama.cpp's own code failed, so it stopped itself: {check}. Most often, this build has a bug "
    "with this model, GPU or one of the options",
    fix="use a newer build of llama.cpp (a newer image); as a test, start once with fewer options, first without "
    "speculative decoding, --split-mode, a quantized KV cache (--cache-type-k, --cache-type-v) and --parallel; search "
    "the issues of llama.cpp for the text of the check",
    condition="the line of the check says GGML_ASSERT or Assertion",
)
CUT = Variant(
    (),
    cause="llama.cpp aborted (ggml_abort), because one of its internal checks failed. The line with the check is above "
    "the backtrace, and is not in this log",
    fix="look for the line above the backtrace in the whole log (`docker logs`), which has the form FILE:LINE: TEXT; "
    "run `stackgen diagnose` again with this line; if you can't find the line, use a newer build of llama.cpp as a "
    "test",
    condition="the line above the backtrace is missing",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-A050",
        title="llama-server aborted while it reused a prompt",
        cause="a check of llama-server failed: its slot has a prompt with tokens to reuse, but the memory of this "
        "sequence is empty (pos_min is -1). The server's records contradict each other, which is a bug of this build",
        fix="use a newer build of llama.cpp (a newer image); until then, as a test, start with one slot (--parallel "
        "1); if the newest build fails too, report it with the lines of the slot above the backtrace",
        source="The messages come from llama.cpp (tools/server/server.cpp; later server-context.cpp), and are quoted "
        "in ggml-org/llama.cpp issues 17060, 17118 and 17253 (2025-11), all with gpt-oss. The failure was not "
        "reproduced.",
        explain="llama-server keeps the tokens of the last prompt of each slot. If a new prompt starts with the same "
        "tokens, it computes only the rest. The last line before the check has the numbers of the slot.",
        patterns=compile_patterns(
            r"pos_min == -1, but n_past > 0 - should not happen",
            # printed just before the check; another line with more fields is printed by healthy servers
            r"n_past = \d+, slot\.prompt\.tokens\.size\(\) = \d+, seq_id = \d+, pos_min = -1\s*$",
        ),
    ),
    Rule(
        "SG-A053",
        title="llama.cpp can't divide this model across the GPUs in this split mode",
        cause="llama.cpp divides each layer across the GPUs (`--split-mode tensor`), and its check of the parts "
        "failed: {check}. This build does not support this model, number of GPUs or options in this mode",
        fix="set extra_args to [--split-mode, layer], which is the default and works for all models; if you need the "
        "mode tensor, use a newer build of llama.cpp, and test 2 or 4 GPUs and no draft model",
        source="The file ggml/src/ggml-backend-meta.cpp of llama.cpp belongs to the split mode tensor alone. "
        "ggml-org/llama.cpp issues 21876 (2026-04), 22718 and 22817 (2026-05) and 26837 (2026-08) quote its checks, "
        "and issue 21404 (2026-04) the one of the mode row. The failure was not reproduced.",
        explain="With the mode layer, each GPU has whole layers. The GPUs and the file are not damaged.",
        patterns=compile_patterns(r"ggml-backend-meta\.cpp:\d+: GGML_ASSERT\((?P<check>.{2,300}?)\) failed"),
        variants=(
            Variant(
                compile_patterns(r"GGML_ASSERT\(!\(split && ne02 < ne12\)\) failed"),
                cause="llama.cpp divides the rows of the weights across the GPUs (`--split-mode row`), and a "
                "multiplication of this model is not possible with divided rows",
                fix="set extra_args to [--split-mode, layer], which is the default and works for all models",
            ),
        ),
    ),
    Rule(
        "SG-A054",
        title="llama.cpp looked up a row that does not exist",
        cause="llama.cpp looked up a row of a table of the model that does not exist. With embedding and reranking "
        "models, the text is longer than the model's own context (n_ctx_train, often 512 tokens), so a position has no "
        "row. Otherwise, a token's number is greater than the vocabulary",
        fix="compare n_ctx_train in the log with the context: set max_model_len (--ctx-size) to n_ctx_train at most, "
        "and send shorter texts; if the model is no embedding model, use the GGUF file of another publisher, or a "
        "newer build of llama.cpp",
        source="The check is in llama.cpp (ggml_compute_forward_get_rows). gpustack/gpustack issue 1407 and "
        "ggml-org/llama.cpp issue 10157 (2024-11) quote it with embedding models. The failure was not reproduced.",
        explain="BERT models have one row for each position. Models with rotary positions have no such limit.",
        patterns=compile_patterns(r"GGML_ASSERT\(i01 >= 0 && i01 < ne01\) failed"),
    ),
)

# an error in the log says more than the backtrace
LAST_RULES: tuple[Rule, ...] = (
    Rule(
        "SG-A051",
        title="llama.cpp aborted because an internal check failed",
        cause="llama.cpp aborted (ggml_abort), because one of its internal checks failed: {check}",
        fix="search the issues of llama.cpp for this check with its file; as a test, use a newer build of llama.cpp, "
        "and start once with fewer options",
        source="The function is in llama.cpp (ggml/src/ggml.c), and prints FILE:LINE: TEXT before the backtrace. "
        "ggml-org/llama.cpp issue 17060 (2025-11) quotes a backtrace, and issues 13405 (2025-05), 14506 (2025-07) and "
        "17071 (2025-11) quote checks. The failure was not reproduced.",
        explain="Such a check protects against wrong results. The exit code is 134, or 139 if llama-server is the "
        "first process of its container.",
        find=_find_assertion,
        fallback=True,
        variants=(ASSERTED, CUT),
    ),
)
