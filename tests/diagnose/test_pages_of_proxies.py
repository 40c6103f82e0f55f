"""Pages and status lines with which proxies answer in place of an engine."""

from __future__ import annotations

import pytest

from stackgen.diagnose import diagnose
from stackgen.runtimes.observation.evidence import collect_from_log

PAGE = "<head><title>{0}</title></head>\n<body>\n<center><h1>{0}</h1></center>\n<hr><center>nginx</center>\n</body>"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Request failed.\nStatus: 504 (Gateway Time-out)", "504"),
        (f"openai.InternalServerError: <html>\n{PAGE.format('504 Gateway Time-out')}", "504"),
        (f"openai.InternalServerError: <html>\n{PAGE.format('502 Bad Gateway')}", "502"),
    ],
)
def test_a_page_of_a_proxy_is_no_answer_of_the_engine(text: str, words: str) -> None:
    found = diagnose(collect_from_log(text))[0]
    assert found.id == "SG-C048" and words in found.cause


def test_an_error_of_the_engine_comes_before_the_page_of_its_proxy() -> None:
    engine = "ERROR 08-01 10:12:09 [core.py:1] ValueError: the frobnicator is out of plums\n"
    found = diagnose(collect_from_log(f"{engine}{PAGE.format('504 Gateway Time-out')}"))[0]
    assert found.id == "SG-0000" and "frobnicator" in " ".join(found.evidence)
