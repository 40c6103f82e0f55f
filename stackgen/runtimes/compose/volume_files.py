"""Reads and writes files of a Docker volume that this user can't open, in containers of an image that already exists.

`docker cp` works with a container that was created and never started, so reading needs no program in the image. Writing
needs /bin/sh and coreutils, which the images of all engines have (`supervise.sh` runs in them).
"""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from stackgen.errors import StackgenError
from stackgen.runtimes.compose.image_archive import docker, stream_from, stream_into

__all__ = ["VolumeFiles", "find_mountpoint", "has_volume"]

MOUNT = "/models"
# the user of the download service who gets an empty store (docs/decisions/storage.md)
OWNER = "2000:0"
PREPARE = f'''set -eu
cd {MOUNT}
if [ "$(stat -c %u .)" = 0 ] && [ -z "$(ls -A)" ]; then chmod 2775 . && chown {OWNER} .; fi
stat -c %u:%g .'''
# names from standard input, one a line: the manifest allows no line breaks
SUMS = f"cd {MOUNT}; while IFS= read -r one; do [ -f \"$one\" ] && sha256sum -- \"$one\"; done; true"
LINKS = f"cd {MOUNT}; while IFS= read -r one; do [ -L \"$one\" ] && printf '%s\\t%s\\n' \"$(readlink -- \"$one\")\" \"$one\"; done; true"
COMMIT = f'''set -eu
umask 002
cd {MOUNT}
while IFS= read -r one; do mkdir -p -- "$(dirname -- "$one")"; mv -fT -- "$0/$one" "$one"; done
rm -rf -- "$0"'''
REMOVE = f'cd {MOUNT} && rm -rf -- "$0"'


def has_volume(name: str) -> bool:
    """Whether the engine has a volume of this name. Raises MachineError if the engine does not answer."""
    try:
        docker("volume", "inspect", name, timeout=60)
    except StackgenError as error:
        if "no such volume" in error.message.lower():
            return False
        raise
    return True


def find_mountpoint(name: str) -> str:
    """The folder of a volume on the engine's machine."""
    return docker("volume", "inspect", "--format", "{{.Mountpoint}}", name, timeout=60).strip()


class VolumeFiles:
    """The files of a volume, through containers of `image`."""

    def __init__(self, volume: str, image: str) -> None:
        self._mount, self._image = f"type=volume,source={volume},target={MOUNT}", image

    @contextmanager
    def read(self, path: str) -> Iterator[tarfile.TarFile | None]:
        """Yields the file or folder `path` as a stream of members, whose names start below `path`; None if missing."""
        with self._container(read_only=True) as container:
            try:
                with stream_from("docker", "cp", f"{container}:{MOUNT}/{path}", "-") as stream:
                    try:
                        yield tarfile.open(fileobj=stream, mode="r|", bufsize=2**20)
                    except tarfile.ReadError:
                        # an empty stream: docker ended with an error
                        yield None
            except StackgenError as error:
                if "Could not find the file" not in error.message:
                    raise

    @contextmanager
    def write(self) -> Iterator[IO[bytes]]:
        """Yields a stream for a tar archive, which is unpacked in the volume."""
        with self._container(read_only=False) as container, stream_into("docker", "cp", "-", f"{container}:{MOUNT}") as stream:
            yield stream

    def prepare(self) -> tuple[int, int]:
        """Gives an empty volume to its owner. Returns uid and gid of the owner."""
        uid, gid = self._run(PREPARE, user="0:0").strip().split(":")
        return int(uid), int(gid)

    def checksums(self, paths: Sequence[str]) -> dict[str, str]:
        """The SHA-256 of each of `paths` that is a file, in hexadecimal digits."""
        lines = self._run(SUMS, paths, user="0:0").splitlines()
        return {line[66:]: line[:64] for line in lines}

    def links(self, paths: Sequence[str]) -> dict[str, str]:
        """The target of each link among `paths`."""
        rows = (line.partition("\t") for line in self._run(LINKS, paths, user="0:0").splitlines())
        return {path: target for target, _, path in rows}

    def commit(self, staging: str, paths: Sequence[str], owner: tuple[int, int]) -> None:
        """Moves `paths` from the folder `staging` of the volume to their places, in this order."""
        self._run(COMMIT, paths, staging, user=f"{owner[0]}:{owner[1]}")

    def remove(self, path: str) -> None:
        """Removes a file or folder."""
        self._run(REMOVE, (), path, user="0:0")

    def _run(self, script: str, lines: Sequence[str] = (), argument: str = "sh", *, user: str) -> str:
        # CHOWN for a new volume; DAC_OVERRIDE because the store may belong to another user
        options = ("--network", "none", "--read-only", "--cap-drop", "ALL", "--cap-add", "CHOWN", "--cap-add", "FOWNER",
                   "--cap-add", "DAC_OVERRIDE", "--security-opt", "no-new-privileges", "--user", user)  # fmt: skip
        text = "".join(f"{line}\n" for line in lines).encode()
        return docker("run", "--rm", "--interactive", *options, "--mount", self._mount, "--pull", "never", "--entrypoint",
                      "/bin/sh", self._image, "-c", script, argument, input=text)  # fmt: skip

    @contextmanager
    def _container(self, read_only: bool) -> Iterator[str]:
        mount = self._mount + (",readonly" if read_only else "")
        created = docker("create", "--network", "none", "--pull", "never", "--mount", mount, "--entrypoint", "/bin/sh",
                         self._image).strip()  # fmt: skip
        try:
            yield created
        finally:
            with suppress(StackgenError, subprocess.SubprocessError):
                docker("rm", "--force", created)
