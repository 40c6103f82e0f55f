"""Rules for keys in the rendered gateway: allowed models, last days, token budgets."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from stackgen.errors import SpecError
from stackgen.plan.site import Site
from stackgen.resolve.pipeline import resolve
from stackgen.spec.keys import KEY_LABEL
from stackgen.targets.compose import ComposeSite
from stackgen.targets.kubernetes import KubernetesSite
from tests.conftest import ROOT
from tests.resolve.addons.test_gateway import check, files, lines, plan, spec

ALPHA = {"served_names": ["alpha", "first"], "lora_adapters": [{"name": "sql", "path": "org/lora"}]}
BETA = {"served_names": ["beta"]}


def rendered(*keys: dict[str, Any], **gateway: Any) -> dict[str, str]:
    named = [{"name": f"k{number}"} | key for number, key in enumerate(keys)]
    return files(plan(ALPHA, BETA, gateway={"keys": named} | gateway))


def test_without_rules_for_keys_a_request_costs_nothing_more() -> None:
    plain = rendered({}, {"requests_per_minute": 3})
    for word in ("count-tokens", "usage.lua", "grants.map", "expiries.map", "budgets.map", "x-stackgen-bytes"):
        assert word not in plain["gateway/haproxy.cfg"] + plain["gateway/large.cfg"], word
    assert not {f"gateway/{name}" for name in ("usage.lua", "count.lua", "grants.map", "budgets.map")} & {*plain}
    assert "tokens" not in plain["gateway/keys.prom"]


def test_allowed_models_are_names_and_not_backends() -> None:
    text = rendered({"models": ["alpha", "sql"]}, {})["gateway/grants.map"]
    grants = lines(text)
    assert {key for key in grants if grants[key] == "1"} == {
        f"k0:{name.encode().hex().upper()}" for name in ("alpha", "sql")
    }
    # the alias `first` of the same model is neither allowed nor listed
    assert '"sql"' in grants["k0:vllm-alpha"] and '"first"' not in text
    assert "k0:vllm-beta" not in grants and "k1" not in text


def test_the_last_day_ends_at_midnight_utc() -> None:
    found = lines(rendered({"expires": "2028-02-29"})["gateway/expiries.map"])
    assert found == {"k0": str(int(datetime(2028, 3, 1, tzinfo=timezone.utc).timestamp()))}


def test_the_last_day_of_the_calendar_is_a_valid_last_day() -> None:
    found = lines(rendered({"expires": "9999-12-31"})["gateway/expiries.map"])
    assert found == {"k0": str(int(datetime(9999, 12, 31, tzinfo=timezone.utc).timestamp()) + 24 * 60 * 60)}


def test_a_key_whose_last_day_is_over_is_a_warning() -> None:
    today = datetime.now(timezone.utc).date().isoformat()
    keys = [{"name": "old", "expires": "2020-02-29"}, {"name": "last", "expires": today}, {"name": "always"}]
    found = [text for text in plan(ALPHA, BETA, gateway={"keys": keys}).warnings if "last day" in text]
    assert len(found) == 1 and "the key old was 2020-02-29" in found[0]


def test_a_budget_counts_the_tokens_of_all_keys() -> None:
    made = rendered({"tokens_per_day": 1000}, {})
    assert lines(made["gateway/budgets.map"]) == {"k0": "1000"}
    assert made["gateway/haproxy.cfg"].count("    filter lua.count-tokens\n") == 2
    metrics = made["gateway/keys.prom"]
    assert metrics.count('stackgen_gateway_key_tokens_today{key="k1"}') == 1
    assert 'stackgen_gateway_key_token_budget{key="k0"}' in metrics


def test_default_limits_count_for_every_key_that_does_not_set_its_own() -> None:
    defaults = {"tokens_per_day": 500, "requests_per_minute": 30, "concurrent_requests": 2, "expires": "2028-02-29"}
    made = rendered({"tokens_per_day": 1000}, {"tokens_per_day": None}, {}, key_defaults=defaults)
    # 0 is no limit: the stack's own commands use the key in .env
    assert lines(made["gateway/budgets.map"]) == {"default": "0", "k0": "1000", "k1": "0", "k2": "500"}
    assert lines(made["gateway/rates.map"]) == {"default": "0", "k0": "30", "k1": "30", "k2": "30"}
    end = str(int(datetime(2028, 3, 1, tzinfo=timezone.utc).timestamp()))
    assert lines(made["gateway/expiries.map"])["k0"] == end
    # keys that are not listed are in no map
    for name, value in (("budgets", "500"), ("rates", "30"), ("concurrency", "2"), ("expiries", end)):
        assert f"map_str_int(/gateway/{name}.map,{value})" in made["gateway/haproxy.cfg"]


def test_default_last_day_that_is_over_is_one_warning() -> None:
    keys = [{"name": "a"}, {"name": "b", "expires": "2999-12-31"}]
    gateway = {"keys": keys, "key_defaults": {"expires": "2020-02-29"}}
    found = [text for text in plan(ALPHA, BETA, gateway=gateway).warnings if "last day" in text]
    assert len(found) == 1 and "gateway.key_defaults was 2020-02-29" in found[0]


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"keys": [{"name": "a", "tokens_per_day": 9}, {"name": "b"}]}, "tokens_per_day"),
        ({"key_defaults": {"requests_per_minute": 9, "concurrent_requests": 2}},
         "requests_per_minute and concurrent_requests"),
        ({"keys": [{"name": "a", "models": ["alpha"]}]}, ""),
    ],
)  # fmt: skip
def test_limits_that_several_pods_count_separately_are_a_warning(limits: dict[str, Any], named: str) -> None:
    def warn(target: str, site: Site, **cluster: Any) -> list[str]:
        made = resolve(spec(ALPHA, BETA, target=target, gateway=limits, **cluster), site, "test")
        return [one for one in made.warnings if "counts the requests" in one]

    found = warn("kubernetes", KubernetesSite())
    assert [one.partition(". ")[0] for one in found] == ([
        f"gateway.keys: each of the 2 pods of the gateway counts the requests and tokens of a key separately, so a key "
        f"can use up to 2 times its {named}"
    ] if named else [])  # fmt: skip
    assert not warn("kubernetes", KubernetesSite(), kubernetes={"gateway_replicas": 1})
    assert not warn("compose", ComposeSite())


def test_tokens_are_counted_without_a_budget_if_requested() -> None:
    made = rendered({}, count_tokens=True)
    assert "lua.count-tokens" in made["gateway/haproxy.cfg"] and "gateway/budgets.map" not in made
    assert "token_budget" not in made["gateway/keys.prom"] and "tokens_today" in made["gateway/keys.prom"]


def test_only_llamacpp_needs_a_count_of_its_choices_and_only_if_tokens_count() -> None:
    def configuration(**gateway: Any) -> str:
        llama = {"model": "./m.gguf", "engine": "llamacpp", "served_names": ["gamma"]}
        return files(plan(ALPHA, llama, gateway=gateway))["gateway/haproxy.cfg"]

    text = configuration(key_defaults={"tokens_per_day": 9})
    named = {name.split()[0]: "txn.counts_one" in name for name in text.split("\nbackend ")[1:]}
    assert {name for name, counts in named.items() if counts} == {"llamacpp-gamma"} and "vllm-alpha" in named
    assert "counts_one" not in configuration()


@pytest.mark.parametrize(
    ("key", "gateway", "message"),
    [
        ({"models": ["alhpa"]}, {}, r"gateway.keys\[0\].models: no model is served as 'alhpa' \(did you mean alpha"),
        ({"models": []}, {}, "gateway.keys"),
        ({"expires": "tomorrow"}, {}, "must be a date, for example 2027-01-31"),
        ({"expires": "2027-02-30"}, {}, "expires"),
        ({"expires": 20270131}, {}, "must be a date"),
        ({"tokens_per_day": 0}, {}, "tokens_per_day"),
        ({"tokens_per_day": 5}, {"count_tokens": False}, "gateway.count_tokens: is false, but a key has"),
    ],
)
def test_mistakes_are_reported_with_their_place(key: dict[str, Any], gateway: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        rendered(key, **gateway)


@pytest.mark.docker
def test_haproxy_accepts_all_rules_together(tmp_path: Path, haproxy_image: str) -> None:
    fallback = BETA | {"fallback": {"base_url": "http://10.0.0.5/v1", "model": "m", "api_key_env": "KEY"}}
    keys = [{"name": "a", "models": ["alpha", "beta"], "expires": "2028-02-29", "tokens_per_day": 5}, {"name": "b"}]
    made = plan(ALPHA | {"replicas": 2}, fallback, gateway={"keys": keys, "tls": "generate"})
    config = files(made)
    # the certificate is created later
    config["gateway/haproxy.cfg"] = config["gateway/haproxy.cfg"].replace("ssl crt /tls/site.crt alpn h2,http/1.1", "")
    assert check(config, tmp_path, haproxy_image, "-e", "KEY=k") == ""


def test_the_monthly_report_of_the_guide_reads_metrics_of_listed_keys() -> None:
    text = (ROOT / "docs/how-to/share-with-a-lab.md").read_text("utf-8")
    used = set(re.findall(r"stackgen_gateway_key_\w+", text))
    assert len(used) == 3
    for fields in ({"count_tokens": True}, {"key_defaults": {"tokens_per_day": 9}}):
        metrics = rendered({}, **fields)["gateway/keys.prom"]
        assert {f'{name}{{key="{key}"}}' for name in used for key in ("default", "k0")} <= set(metrics.split())


def test_the_guide_and_the_reference_name_the_form_of_key_names() -> None:
    for name, valid in (("ada-lovelace", True), ("0_a", True), ("a" * 32, True), ("a" * 33, False),
                        ("Ada", False), ("_a", False), ("a.b", False), ("a b", False)):  # fmt: skip
        assert bool(re.search(KEY_LABEL, name)) == valid
    for page in ("how-to/share-with-a-lab.md", "how-to/rotate-keys.md", "reference/stack-file.md"):
        text = " ".join((ROOT / "docs" / page).read_text("utf-8").split())
        assert "lower-case letters, digits, `_` and `-`" in text and "32" in text, page
