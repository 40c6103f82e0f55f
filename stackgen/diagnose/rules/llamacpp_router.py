"""Rules for llama-server's router, which loads several models from a preset file or a folder.

None of these failures was reproduced. `source` names the files and the reports that quote the messages.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-A040",
        title="llama-server does not know an option of its preset file",
        cause="the preset `{preset}` has the option `{option}`, which this build of llama-server does not know as an "
        "option of presets. llama-server then loads no model at all",
        fix="remove or correct `{option}` in the file of --models-preset; its keys are the long flags of `llama-server "
        "--help` without the dashes, and newer builds have other names (mmap, mlock and direct-io became load-mode)",
        source="The message comes from llama.cpp (common/preset.cpp). ggml-org/llama.cpp issue 25333 (2026-07) quotes "
        "it. The failure was not reproduced.",
        explain="Options of the router itself (such as --tools, --models-max or --port) can't be in a preset.",
        patterns=compile_patterns(r"option '(?P<option>[^']+)' not recognized in preset '(?P<preset>[^']+)'"),
        variants=(
            Variant(
                compile_patterns(r"get_hf_plan: file '(?P<file>[^']+)' not found in repository"),
                title="llama-server looks for a local file in a repository of the Hub",
                cause="llama-server looks for {file} in a repository of the Hub. If the name of a preset has the form "
                "user/repository:quantization, some builds treat the preset as a model of the Hub, and `model` as the "
                "name of a file in its repository",
                fix="give the section of the preset another name, without a slash (for example [gemma-4-31b]), and "
                "keep `model` as the path of the file; or use `hf-repo` in place of `model`; for a model of the Hub, "
                "correct the name of the file",
            ),
            Variant(
                compile_patterns(r"required file is not available in cache \(offline mode\): (?P<file>\S+)"),
                title="llama-server is offline, and a file of the model is missing",
                cause="llama-server is not allowed to download files, and {file} is not in its cache. The router of "
                "some builds starts its models in offline mode",
                fix="put the file at this path before the start (a model for images needs its mmproj file as well), or "
                "start llama-server once without `--offline`, so that it downloads the model; check that the path in "
                "the preset is the path inside of the container",
            ),
        ),
    ),
)
