"""The page docs/reference/models.md: what the catalog covers, and how its memory figures compare with `fit`."""

from collections import Counter

from benchmarks.fit_rows import DATA, GIB, Model, Settings, Weights, estimate, json, read_config, read_rows
from stackgen.catalog import find_access, find_model, find_parser, load_packaged
from stackgen.catalog.flags import settle, why_not
from stackgen.catalog.lookup import read_families
from stackgen.catalog.search import GB, hardware_names, weight_bytes
from stackgen.fit import find_gpu
from stackgen.flags import PINNED

# tokens of one request for the comparison
LENGTH = 8192


def catalog_page(note):
    snapshot, version = load_packaged(), PINNED["vllm"]
    entries, pairs = snapshot.models, [(one, variant) for one in snapshot.models for variant in one.variants]
    able = [(entry, variant) for entry, variant in pairs if not why_not(entry, variant)]
    used = [settle(entry, variant) for entry, variant in able]
    left = Counter((text.partition(" ")[0], reason.partition(":")[0]) for one in used for text, reason in one.left_out)
    access = [find_access(one.model) for one in entries]
    rows = {
        "models": len(entries), "checkpoints (variants)": len(pairs),
        f"checkpoints that vLLM {version} serves, each with a stack.yaml that renders": len(able),
        "models that need vllm-omni, for which stackgen has no engine": sum(one.omni for one in entries),
        "models with a parser for tool calls in their recipe": sum(bool(one.tool_call_parser) for one in entries),
        f"models with a parser for tool calls that vLLM {version} has, in their recipe or in vLLM's documentation":
            sum(find_parser("tool_call_parser", one.model) is not None for one in entries),
        f"models with a parser for reasoning that vLLM {version} has":
            sum(find_parser("reasoning_parser", one.model) is not None for one in entries),
        "models whose tool calls need a chat template of vLLM's repository":
            sum(bool(one.chat_template) for one in entries),
        "models with a context length": sum(bool(one.context) for one in entries),
        "models with verified hardware": sum(bool(one.verified) for one in entries),
        "models with a known license": sum(bool(one.license) for one in access),
        "models known to be gated": sum(bool(one.gated) for one in access),
        "flags taken over": sum(1 for one in used for word in one.args if word.startswith("-")),
        "flags left out": sum(left.values()),
    }  # fmt: skip
    parts = [
        note, "# The catalog of models\n",
        "`stackgen models` reads a catalog of facts from the recipes of vLLM "
        f"([{snapshot.source}](https://github.com/{snapshot.source}), {snapshot.license}) at commit "
        f"`{snapshot.commit}`. The newest recipe is of {snapshot.updated}. The catalog does not contain the texts of "
        "the recipes. [Choose a model](../how-to/choose-a-model.md) shows how to use the catalog.\n",
        "Nobody has run all of these recipes. Their authors state which hardware is `verified`. So stackgen checks "
        f"each flag and each parser against the real vLLM {version}, and leaves out those that this version does not "
        "have. It never takes over a flag that loads code, opens a file or a port, or names another model.\n",
        "## Coverage\n", "| what | count |", "|---|---|",
        *(f"| {what} | {count} |" for what, count in rows.items()), "",
        "The recipes name no license, and only a few say that a model is gated. Licenses and gates in the catalog "
        "come from the models' own repositories. `stackgen models show MODEL --hub` reads them from the Hub.\n",
        "## Flags that are left out\n", "| flag | reason | checkpoints |", "|---|---|---|",
        *(f"| `{flag}` | {reason} | {count} |" for (flag, reason), count in sorted(left.items())), "",
        *_memory(able), *_hardware(snapshot), *_licenses(),
    ]  # fmt: skip
    return "\n".join(parts)


def _memory(able):
    small = []
    for entry, variant in able:
        weights = weight_bytes(entry, variant)
        if weights > variant.vram_gb * GB:
            small.append((variant.model, variant.vram_gb, weights / GB))
    yield "## Memory\n"
    yield (
        "A recipe's figure is the size of the weights plus 20 %, rounded. It does not include the context. "
        "[`stackgen fit`](../how-to/fit-a-model.md) estimates all parts of the memory. The table compares both figures "
        f"for one request of {LENGTH:,} tokens, on the smallest possible number of H200 GPUs. It contains the models "
        "whose config.json and size of the weights are in the data of the page on [accuracy](fit-accuracy.md).\n"
    )
    yield "| model | recipe | `fit` | difference |"
    yield "|---|---|---|---|"
    for name, recipe, need in _compare():
        yield f"| {name} | {recipe} GB | {need:.1f} GB | {recipe / need - 1:+.0%} |"
    yield ""
    if small:
        yield (
            f"For {len(small)} checkpoints, the recipe contradicts itself: its memory is smaller than the size of "
            "the weights, computed from its number of parameters and precision. `models search --fits` uses the "
            "larger number:\n"
        )
        yield "| checkpoint | recipe | weights |"
        yield "|---|---|---|"
        yield from (f"| {name} | {figure} GB | {weights:.0f} GB |" for name, figure, weights in sorted(small))
        yield ""


def _compare():
    configs, seen = json.loads((DATA / "models.json").read_text()), set()
    for row in read_rows():
        name = row.fields["model"]
        match = find_model(name)
        if name in seen or not match or not row.fields["checkpoint_gib"] or match.variant.model != name:
            continue
        seen.add(name)
        weights = Weights(int(row.number("checkpoint_gib") * GIB), (), "")
        for count in (1, 2, 4, 8):
            settings = Settings(tensor_parallel=count, max_model_len=LENGTH)
            found = estimate(Model(read_config(configs[name]), weights, name), settings, find_gpu("H200"))
            if found.verdict == "fits":
                break
        yield name, match.variant.vram_gb, found.needed[1] * count / GB


def _hardware(snapshot):
    names = hardware_names(snapshot)
    count = Counter(key for entry in snapshot.models for key in entry.verified)
    yield "## Verified hardware\n"
    yield "To search for the models of a row, use `models search --hardware NAME`.\n"
    yield "| hardware | models |"
    yield "|---|---|"
    yield from (f"| {names[key]} | {number} |" for key, number in count.most_common())
    yield ""


def _licenses():
    yield "## Licenses and gated models\n"
    yield "| models | license | gated | source |"
    yield "|---|---|---|---|"
    for one in read_families()["access"]:
        models = one["pattern"].replace("(?:Meta-)?", "").replace("\\d[\\d.]*B", "…B").replace("\\", "")
        models = models.replace("(?!V)", "").replace("(?!-Distill)", "").replace("[34]", "3 and 4")
        yield (f"| {models} | {one.get('license') or 'unknown'} | {'yes' if one.get('gated') else 'unknown'} | "
               f"{one['source']} |")  # fmt: skip
    yield ""
