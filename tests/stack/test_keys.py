"""Keys in files: only hashes, whole files, and no way to lock oneself out by accident."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from stackgen.errors import StackgenError
from stackgen.render.write import write_atomically
from stackgen.spec.addons import KeySpec
from stackgen.stack.envfile import API_KEY, create_env, key_of
from stackgen.stack.keys import MAP, digest, known_keys, listed, make_key, remove_key, rotate_key


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(API_KEY, raising=False)
    create_env(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return [one.name for one in known_keys(folder)]


def text(folder: Path) -> str:
    return (folder / MAP).read_text()


def test_before_there_is_a_map_the_key_of_env_counts(folder: Path) -> None:
    (one,) = known_keys(folder)
    assert (one.name, one.hashes, one.from_env) == ("default", (digest(key_of(folder)),), True)
    assert not (folder / MAP).exists()


def test_a_new_key_is_in_no_file(folder: Path) -> None:
    key = make_key(folder, "team")
    assert key.startswith("sk-") and len(key) > 40
    hashed = hashlib.sha256(key.encode()).hexdigest().upper()
    assert f"\n{hashed} team\n" in text(folder)
    assert "\nmanaged 1\n" in text(folder)
    # or the gateway would shut out who used it so far
    assert f"\n{digest(key_of(folder))} default\n" in text(folder)
    assert key not in "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    assert (folder / MAP).stat().st_mode & 0o777 == 0o644


def test_a_name_has_one_first_key(folder: Path) -> None:
    make_key(folder, "team")
    before = text(folder)
    for name, message in (("team", "has a key already"), ("default", "has a key already"), ("A b", "is no name")):
        with pytest.raises(StackgenError, match=message):
            make_key(folder, name)
    assert text(folder) == before


def test_rotation(folder: Path) -> None:
    first = make_key(folder, "team")
    second = rotate_key(folder, "team")
    assert known_keys(folder)[1].hashes == (digest(first), digest(second))
    assert remove_key(folder, "team", older=True) == 1
    assert known_keys(folder)[1].hashes == (digest(second),)
    assert remove_key(folder, "team", older=True) == 0
    assert remove_key(folder, "team") == 1
    assert names(folder) == ["default"]


def test_the_default_key_is_rotated_in_env_and_nothing_else_there_changes(folder: Path) -> None:
    old, before = key_of(folder), (folder / ".env").read_text()
    new = rotate_key(folder, "default")
    assert (folder / ".env").read_text() == before.replace(old, new)
    assert (folder / ".env").stat().st_mode & 0o777 == 0o600
    assert known_keys(folder)[0].hashes == (digest(old), digest(new))
    assert known_keys(folder)[0].from_env


def test_the_default_key_is_rotated_where_env_lost_it(folder: Path) -> None:
    make_key(folder, "team")
    (folder / ".env").write_text("OTHER=1")
    new = rotate_key(folder, "default")
    assert (folder / ".env").read_text() == f"OTHER=1\n{API_KEY}={new}\n"
    (folder / ".env").unlink()
    new = rotate_key(folder, "default")
    assert key_of(folder) == new
    assert (folder / ".env").stat().st_mode & 0o777 == 0o600
    assert known_keys(folder)[0].from_env


def test_no_key_is_lost_where_env_can_not_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_key(folder, "team")
    before, env = text(folder), (folder / ".env").read_text()

    def full(path: Path, *words: object, **more: object) -> None:
        if path.name == ".env":
            raise OSError("No space left on device")
        write_atomically(path, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("stackgen.stack.keys.write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        rotate_key(folder, "default")
    assert (text(folder), (folder / ".env").read_text()) == (before, env)
    (folder / ".env").unlink()
    (folder / ".env").mkdir()
    with pytest.raises(IsADirectoryError):
        rotate_key(folder, "default")
    assert text(folder) == before


def test_the_default_key_is_not_removed(folder: Path) -> None:
    with pytest.raises(StackgenError, match="own commands use"):
        remove_key(folder, "default")


def test_a_key_of_the_environment_is_not_rotated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, "sk-other")
    with pytest.raises(StackgenError, match="goes before"):
        rotate_key(folder, "default")
    assert not (folder / MAP).exists()


def test_an_unknown_name(folder: Path) -> None:
    make_key(folder, "team")
    for act in (rotate_key, remove_key):
        with pytest.raises(StackgenError) as caught:
            act(folder, "taem")
        assert caught.value.hint == "did you mean team?"


def test_without_env_there_is_nothing_to_start_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY, raising=False)
    assert known_keys(tmp_path) == []
    with pytest.raises(StackgenError, match="holds no"):
        make_key(tmp_path, "team")


def test_the_list(folder: Path) -> None:
    key = make_key(folder, "guest")
    limits = KeySpec(name="team", requests_per_minute=60, concurrent_requests=None)
    default, guest, team = listed(folder, [limits])
    assert digest(key)[:8] in guest.line() and digest(key)[:9] not in guest.line()
    assert "no limits" in guest.line()
    assert "60 requests a minute" in team.line() and "keys new team" in team.line()
    assert default.to_json()["from_env"] is True
    assert key not in str([one.to_json() for one in (default, guest, team)])
    # edited by hand since
    (folder / ".env").write_text(f"{API_KEY}=sk-mine\n")
    assert "none of them is that of .env" in listed(folder, [])[0].line()


def test_two_at_once_lose_nothing(folder: Path) -> None:
    threads = [threading.Thread(target=make_key, args=(folder, f"k{number}")) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(names(folder)) == {"default", *(f"k{number}" for number in range(12))}
