#!/usr/bin/env bash
# parse-prometheus-text-format 1.1.1: of the histograms of several replicas, only a mix of the last one's buckets is left.
#
# Expected  vLLM's `/metrics` with two engines (data parallelism) has two label sets for each histogram. The parser returns both,
#           with labels, buckets, count and sum, as it does for the labels of gauges, counters and summaries.
# Seen      It returns one histogram, without labels, count and sum. Its buckets are those of the last engine. Even for one engine,
#           labels, count and sum are missing, because vLLM's metrics always have labels.
# Why it    The example in the package's documentation is a histogram without labels, which is complete. Gauges of the same text
# surprises keep all engines. So a dashboard or an autoscaler shows the latency of one engine as that of all, while the first
#           engine may be the slow one. Nothing throws.
# Exits 0 while this holds, 1 when it has changed. Needs node 20, npm and its registry. Takes about 10 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
command -v node >/dev/null && command -v npm >/dev/null || { echo "skipped: no node or npm"; exit 0; }
cd "$dir" && npm install --silent --no-audit --no-fund parse-prometheus-text-format@1.1.1 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > try.mjs <<'JS'
import module from "parse-prometheus-text-format";

const parse = module.default ?? module;
const name = "vllm:time_to_first_token_seconds";
// the order of prometheus_client, which vLLM uses: all lines of one label set, then those of the next one
const histogram = (labels, [fast, all]) => {
  const inner = labels.map((label) => `${label},`).join("");
  const outer = labels.length ? `{${labels}}` : "";
  return `${name}_bucket{${inner}le="0.1"} ${fast}\n${name}_bucket{${inner}le="+Inf"} ${all}\n` +
    `${name}_count${outer} ${all}\n${name}_sum${outer} 12.5\n`;
};
const engine = (number) => [`engine="${number}"`, 'model_name="m"'];
const read = (...histograms) =>
  parse(`# HELP ${name} Histogram\n# TYPE ${name} histogram\n${histograms.join("")}` +
    "# HELP vllm:num_requests_running Gauge\n# TYPE vllm:num_requests_running gauge\n" +
    'vllm:num_requests_running{engine="0"} 1.0\nvllm:num_requests_running{engine="1"} 2.0\n');
const seen = {
  "no labels": read(histogram([], [1, 40])),
  "one engine": read(histogram(engine(0), [1, 40])),
  "two engines": read(histogram(engine(0), [1, 40]), histogram(engine(1), [7, 8])),
};
const text = Object.entries(seen).map(([title, [latency]]) => `${title}: ${JSON.stringify(latency.metrics)}`);
console.log(text.join("\n"));
const gauges = Object.values(seen).map((families) => families[1].metrics.length);
if (text[0] !== 'no labels: [{"buckets":{"0.1":"1","+Inf":"40"},"count":"40","sum":"12.5"}]' || `${gauges}` !== "2,2,2")
  process.exit(3);
const changed = text[1] !== 'one engine: [{"buckets":{"0.1":"1","+Inf":"40"}}]' ||
  text[2] !== 'two engines: [{"buckets":{"0.1":"7","+Inf":"8"}}]';
process.exit(changed ? 9 : 0);
JS
node try.mjs
case $? in
  0) ;;
  9) echo "changed: other histograms are returned"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
