"""The examples as an outside linter sees them: no root by order, no credential as a literal, no strong capability.

The rules are those of compose-lint 0.36 (CL-0011, CL-0018, CL-0020, CL-0024, CL-0027 to CL-0030).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

EXAMPLES = sorted((Path(__file__).parents[2] / "compose").glob("*/compose.yaml"))
CREDENTIAL = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY)")
# what the download needs to become the owner of the store, and the gateway to serve TLS
ALLOWED = {"CHOWN", "SETGID", "SETUID", "KILL"}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.parent.name)
def test_examples_have_no_high_or_medium_findings(file: Path) -> None:
    services = yaml.safe_load(file.read_text("utf-8"))["services"]
    assert services
    for name, service in services.items():
        assert not re.match(r"(root|[+-]?0+)(:|$)", str(service.get("user", ""))), name
        assert set(service.get("cap_add", ())) <= ALLOWED, name
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        for variable, value in service.get("environment", {}).items():
            assert not CREDENTIAL.search(variable) or str(value).startswith("${"), (name, variable)
