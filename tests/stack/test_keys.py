"""Keys in files: only hashes are saved, files are written whole, and nobody locks themselves out by accident."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from stackgen.errors import StackgenError
from stackgen.render.write import write_atomically
from stackgen.spec.addons import GatewaySpec
from stackgen.spec.keys import KeyDefaults, KeySpec
from stackgen.stack.envfile import API_KEY, create_env, read_api_key
from stackgen.stack.keys import MAP, create_key, digest, list_keys, load_keys, remove_key, rotate_key


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(API_KEY, raising=False)
    create_env(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return [one.name for one in load_keys(folder)]


def text(folder: Path) -> str:
    return (folder / MAP).read_text()


def test_without_a_map_the_key_in_env_is_valid(folder: Path) -> None:
    (one,) = load_keys(folder)
    assert (one.name, one.hashes, one.from_env) == ("default", (digest(read_api_key(folder)),), True)
    assert not (folder / MAP).exists()


def test_new_key_is_saved_only_as_a_hash(folder: Path) -> None:
    key = create_key(folder, "team")
    assert key.startswith("sk-") and len(key) > 40
    hashed = hashlib.sha256(key.encode()).hexdigest().upper()
    assert f"\n{hashed} team\n" in text(folder)
    assert "\nmanaged 1\n" in text(folder)
    # otherwise the gateway would reject the clients that used it so far
    assert f"\n{digest(read_api_key(folder))} default\n" in text(folder)
    assert key not in "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    assert (folder / MAP).stat().st_mode & 0o777 == 0o644


def test_key_is_created_once_per_name(folder: Path) -> None:
    create_key(folder, "team")
    before = text(folder)
    for name, message in (
        ("team", "already has a key"),
        ("default", "already has a key"),
        ("A b", "is not a valid name"),
    ):
        with pytest.raises(StackgenError, match=message):
            create_key(folder, name)
    assert text(folder) == before


def test_rotated_keys_stay_valid_until_removed(folder: Path) -> None:
    first = create_key(folder, "team")
    second = rotate_key(folder, "team")
    assert load_keys(folder)[1].hashes == (digest(first), digest(second))
    assert remove_key(folder, "team", older=True) == 1
    assert load_keys(folder)[1].hashes == (digest(second),)
    assert remove_key(folder, "team", older=True) == 0
    assert remove_key(folder, "team") == 1
    assert names(folder) == ["default"]


def test_rotating_the_default_key_changes_only_that_line_of_env(folder: Path) -> None:
    old, before = read_api_key(folder), (folder / ".env").read_text()
    new = rotate_key(folder, "default")
    assert (folder / ".env").read_text() == before.replace(old, new)
    assert (folder / ".env").stat().st_mode & 0o777 == 0o600
    assert load_keys(folder)[0].hashes == (digest(old), digest(new))
    assert load_keys(folder)[0].from_env


def test_default_key_is_rotated_if_env_has_none(folder: Path) -> None:
    create_key(folder, "team")
    (folder / ".env").write_text("OTHER=1")
    new = rotate_key(folder, "default")
    assert (folder / ".env").read_text() == f"OTHER=1\n{API_KEY}={new}\n"
    (folder / ".env").unlink()
    new = rotate_key(folder, "default")
    assert read_api_key(folder) == new
    assert (folder / ".env").stat().st_mode & 0o777 == 0o600
    assert load_keys(folder)[0].from_env


def test_no_key_is_lost_if_env_can_not_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_key(folder, "team")
    before, env = text(folder), (folder / ".env").read_text()

    def disk_full(path: Path, *args: object, **options: object) -> None:
        if path.name == ".env":
            raise OSError("No space left on device")
        write_atomically(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("stackgen.stack.keys.write_atomically", disk_full)
    with pytest.raises(OSError, match="No space"):
        rotate_key(folder, "default")
    assert (text(folder), (folder / ".env").read_text()) == (before, env)
    (folder / ".env").unlink()
    (folder / ".env").mkdir()
    with pytest.raises(IsADirectoryError):
        rotate_key(folder, "default")
    assert text(folder) == before


def test_default_key_is_not_removed(folder: Path) -> None:
    with pytest.raises(StackgenError, match="own commands use"):
        remove_key(folder, "default")


def test_key_in_the_environment_is_not_rotated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, "sk-other")
    with pytest.raises(StackgenError, match=r"overrides \.env"):
        rotate_key(folder, "default")
    assert not (folder / MAP).exists()


def test_unknown_name_suggests_the_closest(folder: Path) -> None:
    create_key(folder, "team")
    for act in (rotate_key, remove_key):
        with pytest.raises(StackgenError) as caught:
            act(folder, "taem")
        assert caught.value.hint == "did you mean team?"


def test_without_env_no_key_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY, raising=False)
    assert load_keys(tmp_path) == []
    with pytest.raises(StackgenError, match="does not set STACKGEN_API_KEY"):
        create_key(tmp_path, "team")


def test_list_shows_hash_prefixes_limits_and_warnings(folder: Path) -> None:
    key = create_key(folder, "guest")
    limits = KeySpec(name="team", requests_per_minute=60, concurrent_requests=None)
    default, guest, team = list_keys(folder, GatewaySpec(keys=(limits,)))
    assert digest(key)[:8] in guest.to_line() and digest(key)[:9] not in guest.to_line()
    assert "no limits" in guest.to_line()
    with_defaults = GatewaySpec(keys=(limits,), key_defaults=KeyDefaults(requests_per_minute=9, tokens_per_day=500))
    _, guest, team = list_keys(folder, with_defaults)
    assert "9 requests per minute" in guest.to_line() and "the limits of gateway.key_defaults" in guest.to_line()
    assert "60 requests per minute  500 tokens per day" in team.to_line()
    assert "60 requests per minute" in team.to_line() and "keys new team" in team.to_line()
    assert default.to_json()["from_env"] is True
    assert key not in str([one.to_json() for one in (default, guest, team)])
    # .env was edited by hand since
    (folder / ".env").write_text(f"{API_KEY}=sk-mine\n")
    assert "the key in .env is not one of these keys" in list_keys(folder, None)[0].to_line()


def test_concurrent_changes_lose_nothing(folder: Path) -> None:
    threads = [threading.Thread(target=create_key, args=(folder, f"k{number}")) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(names(folder)) == {"default", *(f"k{number}" for number in range(12))}
