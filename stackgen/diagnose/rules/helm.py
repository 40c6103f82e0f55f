"""Rules for Helm charts, custom resources and model runtimes of a cluster: Helm, kubectl, KServe.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-K031",
        title="Helm does not take over an object that already exists",
        cause="the cluster already has {kind} {name}, which does not belong to this release, so Helm does not change "
        "it. Another chart, `kubectl apply` or an earlier installation created it",
        fix="find out who owns the object (see the labels and annotations in `kubectl get {kind} {name} -o yaml`); if "
        "another chart or script installs it on purpose, leave the object out of this release (`--skip-crds`, or the "
        "chart's own setting); to let this release own it, use `--take-ownership` (Helm 3.17 and newer), or set the "
        "label app.kubernetes.io/managed-by=Helm and the annotations that the message names; don't delete a "
        "CustomResourceDefinition: this deletes all its objects",
        source="The message comes from Helm (pkg/action/validate.go). kserve/kserve issues 4257 (2025-02) and 5128 "
        "(2026-03) quote it. The failure was not reproduced.",
        explain="Two charts that contain the same CustomResourceDefinition can't both own it.",
        patterns=compile_patterns(
            r"(?P<kind>[A-Z]\w+) \\?\"(?P<name>[^\"\\]+)\\?\" in namespace \\?\"[^\"]*\" exists and cannot be imported "
            r"into the current release: invalid ownership metadata",
        ),
        inputs=("log", "compose"),
    ),
    Rule(
        "SG-K032",
        title="Helm does not find the chart",
        cause="the Helm repository {repo} has no chart with the name {chart}",
        fix="run `helm repo update`, then `helm search repo {repo}`, which lists the repository's charts, and use a "
        "name from this list (the project's name may differ: vLLM's production stack is vllm/vllm-stack)",
        source="The message comes from Helm (pkg/repo/index.go and pkg/action/install.go); "
        "vllm-project/production-stack issue 37 (2025-01) quotes it. The failure was not reproduced.",
        explain="The repository itself was found, so the network is not the cause.",
        patterns=compile_patterns(
            r"chart \\?\"(?P<chart>[^\"\\]+)\\?\" matching .{0,60}?not found in (?P<repo>\S+) index\. .{0,60}no chart "
            r"name found",
        ),
        inputs=("log", "compose"),
        variants=(
            Variant(
                compile_patterns(
                    r"chart \\?\"(?P<chart>[^\"\\]+)\\?\" (?:matching|version) ?\\?\"?(?P<version>[^\" \\]*)\\?\"? not "
                    r"found in "
                    r"(?P<repo>\S+) index\. .{0,60}no chart version found",
                ),
                title="Helm does not find the version of the chart",
                cause="the Helm repository {repo} has the chart {chart}, but not in the version that was asked for",
                fix="run `helm repo update`, then `helm search repo {chart} --versions` (add `--devel` for preview "
                "versions), and use a version from this list",
            ),
        ),
    ),
    Rule(
        "SG-K033",
        title="KServe has no runtime for the model's format",
        cause="no ServingRuntime and no ClusterServingRuntime of KServe supports the model format `{format}`. The "
        "runtimes are installed apart from KServe's controller, so a new installation may have none",
        fix="run `kubectl get clusterservingruntimes` and `kubectl get servingruntimes -n NAMESPACE`; if the lists are "
        "empty, install the runtimes of the same KServe version; otherwise use a format, version and protocol that one "
        "of them lists in `supportedModelFormats` (with `autoSelect: true`), or name a runtime in "
        "`spec.predictor.model.runtime`",
        source="The messages come from KServe (pkg/controller/v1beta1/inferenceservice/components/predictor.go). "
        "kserve/kserve issues 5029 (2026-02), 5035 (2026-02) and 2372 (2022-08) quote them. The failure was not "
        "reproduced.",
        explain="KServe chooses among the runtimes by the name of the format, its version and the protocol.",
        patterns=compile_patterns(r"no runtime found to support predictor with model type: \{(?P<format>[\w.-]+)"),
        inputs=("log", "compose"),
        variants=(
            Variant(
                compile_patterns(r"No runtime found to support specified framework/version"),
                cause="no ServingRuntime and no ClusterServingRuntime of KServe supports the model's format and "
                "version",
            ),
        ),
    ),
)
