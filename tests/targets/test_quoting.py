"""Hostile strings in every free text field come back unchanged through the real `docker compose config`.

`-q` alone would miss a value that Compose reads as something else, so its JSON is compared with the plan. One call
costs about 0.1 s, so each call takes many strings.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from stackgen.plan import Bind, EnvRef, Plan, Service, Tmpfs, Volume
from stackgen.render.templating import render
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite, format_comment, format_scalar, quote

# strings that YAML, Compose's interpolation, Jinja, a shell or argparse could interpret
HOSTILE = [
    "'",
    '"',
    "''",
    '""',
    "a'b\"c",
    "\\",
    "\\n",
    "\\\\",
    "a\\",
    "a\nb",
    "\n",
    "a\n",
    "\na",
    "\r\n",
    "\t",
    "a\tb",
    " a",
    "a ",
    "  ",
    " ",
    "$",
    "$$",
    "$$$",
    "${X}",
    "$X",
    "${X:?no}",
    "${X:-y}",
    "$${X}",
    "a$",
    "$1",
    "$(ls)",
    "`ls`",
    "{{ x }}",
    "{{",
    "}}",
    "{% if x %}",
    "{% raw %}",
    "{# c #}",
    "{",
    "}",
    "[",
    "]",
    "[a, b]",
    "{a: b}",
    ",",
    "a,b",
    "a, b",
    "#",
    "# x",
    "a #b",
    "a#b",
    ": ",
    "a: b",
    "a:",
    ":",
    ":a",
    "a:b",
    "- x",
    "-",
    "--",
    "---",
    "...",
    "--flag",
    "--flag=a b",
    "-1",
    "?",
    "? a",
    "!",
    "!tag",
    "!!str a",
    "!!binary x",
    "&",
    "&a",
    "*",
    "*a",
    "%",
    "%YAML 1.2",
    "@",
    "@a",
    "`",
    "|",
    "|-",
    ">",
    ">-",
    "<<",
    "=",
    "~",
    "a~",
    "yes",
    "no",
    "on",
    "off",
    "y",
    "n",
    "Y",
    "N",
    "true",
    "false",
    "True",
    "TRUE",
    "null",
    "Null",
    "NULL",
    "None",
    "nan",
    ".nan",
    ".inf",
    "-.inf",
    "0",
    "1",
    "08",
    "010",
    "0o10",
    "0x1F",
    "0b1",
    "1e-5",
    "1e5",
    "1E5",
    "1.0",
    "1.",
    ".5",
    "+1",
    "1_000",
    "1:30",
    "12:30:45",
    "2024-01-01",
    "2024-01-01T00:00:00Z",
    "é",
    "ß",
    "模型",
    "\u00a0",
    "\u0085",
    "\u2028",
    "\u2029",
    "\ufeff",
    "a\ufeff",
    "\u200b",
    "\u202e",
    "😀",
    "\U0010ffff",
    "\U000e0001",
    "\x01",
    "\x1b[31m",
    "\x7f",
    "\x80",
    "\ufffd",
    "\ufffe",
    "\uffff",
    "é\U0001f600\n#",
    "x" * 5000,
    "$" * 200,
    '"\\' * 300,
]
# no command line can contain NUL and surrogates, and the loader rejects them
text = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=12)
spiced = st.lists(st.sampled_from([one for one in HOSTILE if len(one) < 100]) | text, min_size=1, max_size=3).map(
    "".join
)


def compose_config(made: Plan, folder: Path) -> dict[str, Any]:
    """The rendered file as the real Compose reads it; no variable may be filled in by accident."""
    env = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "DOCKER_CONFIG")}
    done = subprocess.run(
        ["docker", "compose", "-f", "-", "--project-directory", str(folder), "config", "--format", "json"],
        input=render(made)[0].text.encode(),
        env=env | {"STACKGEN_API_KEY": "the-key"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    data = json.loads(done.stdout)
    assert isinstance(data, dict)
    return data


def undoubled(value: Any) -> Any:
    """Compose prints a literal `$` as `$$`, so that its output is a Compose file again."""
    if isinstance(value, str):
        return value.replace("$$", "$")
    if isinstance(value, list):
        return [undoubled(one) for one in value]
    return {key: undoubled(one) for key, one in value.items()} if isinstance(value, dict) else value


def volume(mount: Volume | Bind, folder: Path) -> dict[str, Any]:
    source = mount.name if isinstance(mount, Volume) else os.path.normpath(folder / mount.source)
    # Compose normalizes paths: `/srv/` is printed as `/srv`
    target = os.path.normpath(mount.target)
    return {"type": type(mount).__name__.lower(), "source": source, "target": target, "read_only": mount.read_only}


def expected(service: Service, folder: Path) -> dict[str, Any]:
    """The plan in the format of Compose's JSON."""
    named = {"STACKGEN_API_KEY": "the-key"}
    gpus = service.gpus
    return {
        "image": service.image,
        "entrypoint": list(service.entrypoint) or None,
        "command": list(service.command) or None,
        "environment": {
            key: named.get(one.name, one.default) if isinstance(one, EnvRef) else one
            for key, one in service.environment
        },
        "volumes": [volume(mount, folder) for mount in service.mounts if not isinstance(mount, Tmpfs)],
        "tmpfs": [f"{mount.target}:{mount.options}" for mount in service.mounts if isinstance(mount, Tmpfs)],
        "healthcheck": ["CMD", *service.health.command] if service.health else None,
        "device_ids": list(gpus.ids) if gpus and gpus.driver != "amd" else [],
        "user": service.user,
        "restart": service.restart,
        "ipc": service.ipc or None,
        "cpuset": service.cpuset,
        "build": dict(service.build.args) if service.build else None,
        "depends_on": {one.service: one.condition for one in service.depends_on},
    }


def seen(service: dict[str, Any]) -> dict[str, Any]:
    devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    volumes = [
        {key: one.get(key, False) for key in ("type", "source", "target", "read_only")}
        for one in service.get("volumes", [])
    ]
    return undoubled(
        {
            "image": service["image"],
            "entrypoint": service.get("entrypoint"),
            "command": service.get("command"),
            "environment": service.get("environment", {}),
            "volumes": volumes,
            "tmpfs": service.get("tmpfs", []),
            "healthcheck": service.get("healthcheck", {}).get("test"),
            "device_ids": [one for device in devices for one in device.get("device_ids", [])],
            "user": service.get("user", ""),
            "restart": service.get("restart"),
            "ipc": service.get("ipc"),
            "cpuset": service.get("cpuset", ""),
            "build": service["build"].get("args", {}) if "build" in service else None,
            "depends_on": {name: one["condition"] for name, one in service.get("depends_on", {}).items()},
        }
    )  # type: ignore[no-any-return]


def compare(made: Plan, folder: Path) -> dict[str, Any]:
    data = compose_config(made, folder)
    assert data["name"] == made.name
    assert set(data["services"]) == {service.name for service in made.services}
    for service in made.services:
        assert seen(data["services"][service.name]) == expected(service, folder), service.name
    assert {key: one["name"] for key, one in data.get("volumes", {}).items()} == dict(made.volumes)
    return data


def plan(models: list[dict[str, Any]], **fields: Any) -> Plan:
    return resolve(
        build_spec({"name": "demo", "models": models, "gateway": False} | fields, "test"), ComposeSite(), "test"
    )


def path(one: str) -> str:
    """A local path that contains `one`; its end is plain, as file systems may change trailing blanks and dots."""
    return f"./d{one}/end"


def file(one: str) -> str:
    """The path of a file that contains `one`, without what could lead out of the model."""
    return f"d{re.sub(r'[/~]|[.][.]', '', one).replace(chr(92), '')}.gguf"


def three_models(one: str, two: str, number: int) -> list[dict[str, Any]]:
    """A model of each engine with a hostile string in every free text field."""
    shared = {
        "extra_args": [one, two, one + two],
        "extra_env": {"A": one, "no": two, "_1e5": one + two, "N": "", "EMPTY": two},
        "image": one,
        "user": two,
        "replicas": 1 + number % 2,
    }
    names = [f"{number}.{one}", f"{number}-{two}"]  # each once in the stack
    lora = {"name": f"l{number}" + "".join(one.split()).replace("=", "") + "x", "path": path(two) + "/lora"}
    return [
        shared
        | {
            "engine": "vllm",
            "model": path(one),
            "served_names": names,
            "chat_template": path(two) + ".jinja",
            "quantization": one,
            "kv_cache_dtype": two,
            "tool_call_parser": one,
            "reasoning_parser": two,
            "lora_adapters": [lora],
        },
        shared
        | {
            "engine": "vllm",
            "model": f"org/m{number}",
            "revision": one,
            "served_names": [f"{number}:{two}"],
            "lora_adapters": [{"name": f"{lora['name']}2", "path": f"org/a{number}", "revision": one}],
            "gpus": [f"GPU-{number}a", f"GPU-{number}b"],
        },
        shared
        | {
            "engine": "fastchat",
            "model": path(two),
            "conv_template": one,
            "max_gpu_memory": two,
            "served_names": [f"{number}.{one}".replace(",", ";")],
        },
        shared | {"engine": "fastchat", "model": f"org/f{number}", "revision": two, "replicas": 1},
        shared
        | {"engine": "llamacpp", "model": f"org/l{number}", "revision": one, "file": file(two), "served_names": names},
        shared | {"engine": "llamacpp", "model": path(two), "file": file(one), "served_names": [f"{number}:{one}"]},
    ]


def stack_of(strings: list[str]) -> list[dict[str, Any]]:
    pairs = list(zip(strings, reversed(strings), strict=True))
    return [model for number, (one, two) in enumerate(pairs) for model in three_models(one, two, number)]


@pytest.mark.compose
@pytest.mark.parametrize("part", range(6))
def test_hostile_strings_survive_compose_in_every_field(part: int, tmp_path: Path) -> None:
    strings = HOSTILE[part::6]
    made = plan(stack_of(strings), storage={"path": path(strings[0]), "hub_endpoint": "http://h/" + "".join(strings)})
    compare(made, tmp_path)
    # make sure that the strings are in the plan, or the test would compare nothing
    arguments = {argument for service in made.services for argument in service.command}
    assert set(strings) <= arguments


@pytest.mark.compose
@settings(
    max_examples=20,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would ask Compose a thousand times
    suppress_health_check=list(HealthCheck),
)
@given(strings=st.lists(spiced, min_size=4, max_size=12, unique=True))
def test_any_text_survives_compose_in_every_field(strings: list[str], tmp_path: Path) -> None:
    compare(plan(stack_of(strings)), tmp_path)


@pytest.mark.compose
def test_hostile_storage_paths_and_mirrors_survive_compose(tmp_path: Path) -> None:
    """One per stack, so one call of Compose each: only the strings that are most likely to break."""
    for one in ("$HOME/x", "a: b #c", '"', "{{ x }}", "é😀\x85"):
        made = plan(
            [{"model": "a/b", "engine": "vllm"}],
            storage={"path": path(one), "hub_endpoint": f"https://{one}", "user": one},
        )
        compare(made, tmp_path)


@pytest.mark.compose
def test_stack_and_volume_names_that_look_like_other_yaml_types_survive(tmp_path: Path) -> None:
    for name in ("no", "null", "1e5", "08", "0x1f", "1_000", "true", "y", "n", "12-30"):
        made = plan(
            [{"model": "a/b", "engine": "vllm", "gpus": [0]}], name=name, storage={"volume": name.ljust(2, "1")}
        )
        compare(made, tmp_path)


@pytest.mark.compose
@pytest.mark.parametrize("driver", ["nvidia", "cdi"])
def test_device_ids_stay_strings(driver: str, tmp_path: Path) -> None:
    models = [
        {"model": f"a/m{index}", "engine": "vllm", "gpus": gpus}
        for index, gpus in enumerate(
            [[0, 10], ["GPU-1e5"], ["MIG-GPU-0/1/0"], ["vendor.com/gpu=08"], ["vendor.com/gpu=1:30"]]
        )
    ]
    made = plan(models, gpu_driver=driver)
    data = compare(made, tmp_path)
    first = data["services"]["vllm-m0"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert first["device_ids"] == (["0", "10"] if driver == "nvidia" else ["nvidia.com/gpu=0", "nvidia.com/gpu=10"])


@pytest.mark.compose
def test_a_missing_required_variable_is_reported(tmp_path: Path) -> None:
    made = plan([{"model": "a/b", "engine": "vllm"}])
    done = subprocess.run(
        ["docker", "compose", "-f", "-", "--project-directory", str(tmp_path), "config", "-q"],
        input=render(made)[0].text,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "put a key into .env" in done.stderr


@pytest.mark.parametrize("one", HOSTILE, ids=ascii)
def test_a_comment_stays_one_line_of_yaml(one: str) -> None:
    """The comment of a service contains the model's name."""
    line = format_comment(f"vLLM serving {one}")
    assert line.isprintable()
    assert yaml.safe_load(f"# {line}\na: 1\n") == {"a": 1}
    assert len(line) == len(f"vLLM serving {one}")


@given(one=st.text())
def test_any_comment_stays_one_line(one: str) -> None:
    assert len(f"# {format_comment(one)}".splitlines()) == 1


@pytest.mark.parametrize("one", HOSTILE, ids=ascii)
def test_scalars_are_read_back_by_pyyaml(one: str) -> None:
    assert yaml.safe_load(format_scalar(one).replace("$$", "$") if "$" in one else format_scalar(one)) == one
    assert yaml.safe_load(f"[{format_scalar(one)}, {{k: {format_scalar(one)}}}]".replace("$$", "$")) == [
        one,
        {"k": one},
    ]


@given(one=st.text(st.characters(exclude_categories=("Cs",))))
def test_any_scalar_is_one_printable_line(one: str) -> None:
    assert format_scalar(one).isprintable()
    assert yaml.safe_load(quote(one)) == one


def test_non_text_scalars() -> None:
    assert [format_scalar(True), format_scalar(False), format_scalar(7)] == ["true", "false", "7"]
    assert format_scalar(EnvRef("A", default="$x")) == '"${A:-$x}"'
    assert format_scalar(EnvRef("A", "50$ } more")) == '"${A:?50$$ ) more}"'
    for wrong in (None, 1.5, ["a"], {"a": "b"}, object()):
        with pytest.raises(TypeError, match="not a scalar"):
            format_scalar(wrong)


@pytest.mark.parametrize("folder", ["./~x", "~nobody-of-this-name/x"])
def test_a_folder_that_starts_with_a_tilde_is_not_a_home(folder: str) -> None:
    assert ComposeSite().host_path(folder).endswith(folder.removeprefix("./"))
