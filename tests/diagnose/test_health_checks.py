"""Health checks that fail although the service runs."""

from __future__ import annotations

from stackgen.diagnose import Evidence, ServiceEvidence, diagnose
from stackgen.runtimes.observation.evidence import collect_from_log

ABSENT = (
    'OCI runtime exec failed: exec failed: unable to start container process: exec: "curl": executable file not found'
)


def test_a_health_check_without_its_program_does_not_blame_the_image_of_the_server() -> None:
    service = ServiceEvidence("a", engine="vllm", state="running", health="unhealthy", health_log=ABSENT)
    found = diagnose(Evidence((service,)))[0]
    assert found.id == "SG-D007" and "The container itself has started" in found.cause
    assert "the image of the server can stay as it is" in found.fix


def test_a_short_start_period_is_named() -> None:
    text = "healthcheck:\n  start_period: 5s\ndependency failed to start: container acme-vllm-1 is unhealthy\n"
    found = diagnose(collect_from_log(text))[0]
    assert found.id == "SG-D034" and "a start period of only 5s" in found.cause and "acme-vllm-1" in found.fix


def test_a_server_on_all_addresses_is_not_suspected() -> None:
    text = "$ llama-server --host 0.0.0.0 --port 8080\ncontainer acme-1 is unhealthy\n"
    found = diagnose(collect_from_log(text))[0]
    assert found.id == "SG-D034" and "--host" not in found.cause


def test_an_error_of_the_service_explains_its_health() -> None:
    text = "RuntimeError: the frobnicator is out of plums\ndependency failed to start: container a-1 is unhealthy\n"
    found = diagnose(collect_from_log(text))[0]
    assert found.id == "SG-0000" and found.evidence[0].startswith("RuntimeError")
