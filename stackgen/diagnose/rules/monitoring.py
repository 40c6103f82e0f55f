"""Rules for Prometheus, Grafana and NVIDIA's DCGM exporter.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C043",
        title="Prometheus does not accept a target's answer",
        cause="the target answers with the Content-Type `{type}`, which is not a metrics format, and Prometheus 3 no "
        "longer guesses the format. Either the path is not the metrics path, or the program sends a wrong header",
        fix="run `curl -i` with the target's address; if the body is not a list of metrics (a web page, JSON), correct "
        "metrics_path, the port or the host of the job; if it is a list of metrics, set `fallback_scrape_protocol: "
        "PrometheusText0.0.4` in this job (ServiceMonitor: `fallbackScrapeProtocol`)",
        source="The messages come from Prometheus 3 (scrape/scrape.go and model/textparse/interface.go). pretix/pretix "
        "issue 5133 (2025-05), userbradley/documentation.breadnet.co.uk issue 655 (2025-10) and "
        "hubblo-org/scaphandre pull request 417 (2025-12) quote them. The failure was not reproduced.",
        explain="Prometheus itself works. vLLM, SGLang, llama-server and HAProxy send the right header on their "
        "metrics paths. So most often, another program, or a proxy's login page, has answered.",
        patterns=compile_patterns(
            r"received unsupported Content-Type \\?\"(?P<type>[^\"\\]+)\\?\"(?!,? (?:and )?using fallback)",
        ),
        variants=(
            Variant(
                compile_patterns(r"non-compliant scrape target sending blank Content-Type and no fallback"),
                cause="the target sends no Content-Type, and Prometheus 3 no longer guesses the format",
                fix="if `curl` with the target's address prints metrics, set `fallback_scrape_protocol: "
                "PrometheusText0.0.4` in the job of this target (ServiceMonitor: `fallbackScrapeProtocol`), or update "
                "the program that sends the metrics",
            ),
        ),
    ),
    Rule(
        "SG-D042",
        title="Grafana can't set up its data sources",
        cause="Grafana's database already has a data source with the same name as in a provisioning file, but with "
        "another `uid` (for example because `uid` was added to the file later). Grafana looks for the file's `uid`, "
        "does not find it, and ends",
        fix="write the `uid` that the data source has in Grafana into the file; or let Grafana replace the data "
        "source: add `deleteDatasources: [{name: NAME, orgId: 1}]` above `datasources:` in the file (dashboards that "
        "name the old `uid` then need the new one)",
        source="The message comes from Grafana 12 (pkg/services/datasources/errors.go and provisioning/datasources). "
        "xencon/aixcl pull request 139 (2025-10) quotes it. The failure was not reproduced.",
        explain="Grafana stores data sources in its volume, so an older file can explain the failure.",
        patterns=compile_patterns(r"Datasource provisioning error: data source not found"),
        variants=(
            Variant(
                compile_patterns(r"Datasource provisioning error: (?P<problem>.{0,200}?: is a directory)"),
                cause="a file of Grafana's provisioning is a folder: {problem}. Docker creates a folder if the file of "
                "a mount does not exist on the host",
                fix="create the file at this place on the host, or correct the path of the mount (remove the empty "
                "folder first)",
            ),
            Variant(
                compile_patterns(
                    r"Datasource provisioning error: (?P<problem>.{0,200}?Only one datasource per .{0,80})"
                ),
                cause="two provisioning files, or two entries, set `isDefault: true`: {problem}",
                fix="set `isDefault: true` for one data source, and remove it from the others (also in other files of "
                "the folder)",
            ),
            Variant(
                compile_patterns(r"Datasource provisioning error: (?P<problem>(?!data source not found)\w.{2,200})"),
                cause="Grafana can't use a file of its provisioning: {problem}",
                fix="correct the file in /etc/grafana/provisioning/datasources that the message is about, and start "
                "Grafana again",
            ),
        ),
    ),
    Rule(
        "SG-D043",
        title="the DCGM exporter can't collect profiling metrics",
        cause="DCGM can't collect profiling metrics (DCGM_FI_PROF_…) of the GPUs: {problem}. Either the GPU does not "
        "support them (GeForce), or the container lacks the capability SYS_ADMIN, or another profiler or exporter uses "
        "the GPU's counters",
        fix="run only one exporter for each machine, and no profiler next to it (Nsight, another nv-hostengine); give "
        "the container the capability (`cap_add: [SYS_ADMIN]`); on GPUs without these metrics, let the exporter read a "
        "file without them (`-f /etc/dcgm-exporter/default-counters.csv`)",
        source="The messages come from DCGM (dcgmlib/dcgm_errors.c) and dcgm-exporter. Issues 22, 148 (2023-08) and "
        "422 (2024-11) of NVIDIA/dcgm-exporter, kubesphere/kubesphere issue 6492 (2025-04) and Project-HAMi/HAMi-WebUI "
        "issue 20 (2025-01) quote them. The failure was not reproduced.",
        explain="The other metrics (memory, temperature, power) need no profiling module.",
        patterns=compile_patterns(
            r"(?:watching fields|watch metrics|[Ss]etting watches|supported metric groups)\b.{0,60}?"
            r"(?P<problem>The third-party Profiling module returned an unrecoverable error|"
            r"This request is serviced by a module of DCGM that is not currently loaded|"
            r"Profiling is not supported for this group of GPUs or GPU)",
        ),
    ),
)
