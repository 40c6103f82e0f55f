"""Images of the Docker engine: what they are, and their archives, as streams of `docker save` and `docker load`.

Docker Engine 25 and newer writes archives that are OCI image layouts (docs.docker.com, Engine 25.0 release notes).
"""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

from stackgen.errors import MachineError, StackgenError
from stackgen.runtimes.compose.command import START_DOCKER
from stackgen.runtimes.compose.engine_socket import open_archive

__all__ = [
    "EngineFacts", "LocalImage", "docker", "inspect_image", "list_layer_chains", "load_archive", "pull_image",
    "read_engine", "remove_tag", "save_archive", "stream_from", "stream_into", "tag_image",
]  # fmt: skip

# the largest size that Linux allows every user (fs.pipe-max-size)
PIPE_BYTES = 2**20
# the answers of a registry, and of Docker before it asks one; after all others, a later attempt may succeed
REFUSED = re.compile(r"not found|manifest unknown|denied|unauthorized|invalid reference|no matching manifest", re.I)
NO_DOCKER = MachineError("docker is not installed", "install Docker Engine with the compose plugin")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """The Docker engine: its platform, its data folder, and whether containerd stores its images."""

    platform: str
    root: str
    uses_containerd: bool


@dataclass(frozen=True, slots=True)
class LocalImage:
    """An image of the engine. `sources` are its names by digest; `layers` the digests of the layers, uncompressed."""

    id: str
    platform: str
    sources: tuple[str, ...]
    layers: tuple[str, ...]
    size: int


def docker(*args: str, input: bytes | None = None, timeout: float | None = None) -> str:
    """Returns the output of a `docker` command. Raises MachineError without Docker, StackgenError if it fails."""
    try:
        done = subprocess.run(["docker", *args], input=input, capture_output=True, timeout=timeout)
    except OSError:
        raise NO_DOCKER from None
    except subprocess.TimeoutExpired:
        raise MachineError(f"`docker {args[0]}` did not answer within {timeout:.0f} s", START_DOCKER) from None
    if done.returncode == 0:
        return done.stdout.decode("utf-8", "replace")
    raise _error(f"docker {' '.join(args[:2])}", done.stderr)


def read_engine() -> EngineFacts:
    """What bundles need to know about the engine. Raises MachineError if the engine does not answer."""
    info = json.loads(docker("info", "--format", "{{json .}}", timeout=60))
    # the CLI prints the error of the engine here, with exit code 0
    if info.get("ServerErrors"):
        raise MachineError(f"the Docker engine does not answer: {info['ServerErrors'][0]}", START_DOCKER)
    # moby 28, daemon/info.go: the containerd image store reports its driver type
    drivers = dict(pair for pair in info.get("DriverStatus") or () if len(pair) == 2)
    version = json.loads(docker("version", "--format", "{{json .Server}}", timeout=60))
    return EngineFacts(f"{version['Os']}/{version['Arch']}", info.get("DockerRootDir", ""),
                       drivers.get("driver-type", "").startswith("io.containerd"))  # fmt: skip


def inspect_image(name: str) -> LocalImage | None:
    """Returns the image `name` of the engine, None if there is none."""
    try:
        data = json.loads(docker("image", "inspect", name))[0]
    except StackgenError as error:
        if "No such image" in error.message:
            return None
        raise
    platform = f"{data['Os']}/{data['Architecture']}" + (f"/{data['Variant']}" if data.get("Variant") else "")
    return LocalImage(data["Id"], platform, tuple(data.get("RepoDigests") or ()),
                      tuple(data["RootFS"].get("Layers") or ()), data.get("Size") or 0)  # fmt: skip


def pull_image(name: str, platform: str) -> None:
    """Pulls an image for a platform; Docker's progress goes to stderr.

    Raises StackgenError if the registry refuses the image, and MachineError if the registry does not answer.
    """
    try:
        done = subprocess.run(["docker", "pull", "--quiet", "--platform", platform, name], capture_output=True)
    except OSError:
        raise NO_DOCKER from None
    if done.returncode:
        hint = "check the image's name, and this machine's connection to the registry"
        error = _error(f"docker pull {name}", done.stderr, hint)
        # without an answer of the registry, the name may be right
        raise error if REFUSED.search(error.message) else MachineError(error.message, error.hint)


def tag_image(image: str, name: str) -> None:
    """Gives an image one more name."""
    docker("image", "tag", image, name)


def remove_tag(name: str) -> None:
    """Removes a name of an image, and the image with its last name. A missing name is no error."""
    with suppress(StackgenError):
        docker("image", "rm", name)


def list_layer_chains() -> set[tuple[str, ...]]:
    """The layers of all images in the engine, each with the layers below it, from the bottom."""
    ids = docker("image", "ls", "--all", "--quiet", "--no-trunc").split()
    if not ids:
        return set()
    # one call for all; an image that is removed meanwhile only costs its layers
    with suppress(StackgenError, ValueError):
        found = json.loads(docker("image", "inspect", *dict.fromkeys(ids)))
        stacks = [tuple(one["RootFS"].get("Layers") or ()) for one in found]
        return {layers[:count] for layers in stacks for count in range(1, len(layers) + 1)}
    return set()


@contextmanager
def save_archive(names: Sequence[str], platform: str = "") -> Iterator[Any]:
    """Yields the archive of images as a stream. `platform` is only for engines that store several.

    The engine begins to prepare the archive at once, before anybody reads. Raises StackgenError at the end of the block if
    the engine failed.
    """
    direct = None if platform else open_archive(names)
    if direct is None:
        with stream_from("docker", "save", *(["--platform", platform] if platform else []), *names) as stream:
            yield stream
        return
    try:
        yield direct
    except (EOFError, OSError) as error:
        # an error of the disk has the name of a file
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise _error("docker save", (direct.error or str(error)).encode()) from None
    finally:
        direct.close()
    if direct.error:
        raise _error("docker save", direct.error.encode())


@contextmanager
def load_archive() -> Iterator[IO[bytes]]:
    """Yields a stream into which the archive is written; the engine has the images after the block.

    Raises MachineError if the disk of the engine is full, and StackgenError for another failure.
    """
    with stream_into("docker", "load", "--quiet") as stream:
        yield stream


@contextmanager
def stream_from(*command: str) -> Iterator[IO[bytes]]:
    """Yields the output of a `docker` command. Raises StackgenError after the block if the command failed."""
    with _start(command, stdout=subprocess.PIPE) as (process, messages):
        problem: Exception | None = None
        try:
            yield _pipe(process.stdout)
        # an output that ends early is the command's failure, and its message has the reason
        except (tarfile.TarError, EOFError) as error:
            problem = error
    if process.returncode or problem:
        raise _error(" ".join(command[:2]), b"".join(messages) or str(problem).encode())


@contextmanager
def stream_into(*command: str) -> Iterator[IO[bytes]]:
    """Yields the input of a `docker` command, and waits for its end after the block.

    Raises MachineError if the disk of the engine is full, and StackgenError for another failure.
    """
    with _start(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as (process, messages):
        is_broken = False
        try:
            yield _pipe(process.stdin)
            _pipe(process.stdin).close()
        # docker ended early: its message has the reason
        except BrokenPipeError:
            is_broken = True
        process.wait()
    if process.returncode or is_broken:
        raise _error(" ".join(command[:2]), b"".join(messages))


@contextmanager
def _start(args: Sequence[str], **streams: Any) -> Iterator[tuple[subprocess.Popen[bytes], list[bytes]]]:
    """Runs a program in the block. Its messages are read meanwhile, so that a full pipe can't stop it."""
    try:
        process = subprocess.Popen(args, stderr=subprocess.PIPE, **streams)
    except OSError:
        raise NO_DOCKER from None
    for stream in (process.stdin, process.stdout):
        # 64 KB by default: a change between the two processes for each would take more time than the bytes
        with suppress(OSError):
            fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, PIPE_BYTES) if stream else None
    messages: list[bytes] = []
    reader = threading.Thread(target=lambda: messages.extend(_pipe(process.stderr)), daemon=True)
    reader.start()
    try:
        yield process, messages
        # what is left of the output of `docker save` is padding
        if process.stdout:
            while process.stdout.read(2**16):
                pass
    except BaseException:
        process.kill()
        raise
    finally:
        for stream in (process.stdin, process.stdout):
            with suppress(OSError, ValueError):
                stream.close() if stream else None
        process.wait()
        reader.join()
        _pipe(process.stderr).close()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:  # pragma: no cover
        raise RuntimeError("the stream was not opened as a pipe")
    return stream


def _error(what: str, stderr: bytes, hint: str = "") -> StackgenError:
    lines = [line for line in stderr.decode("utf-8", "replace").strip().splitlines() if line.strip()]
    message = lines[-1] if lines else "it ended without a message"
    text = message.lower()
    if "docker daemon" in text:
        return MachineError(f"the Docker engine does not answer: {message}", START_DOCKER)
    if "no space left on device" in text:
        return MachineError(f"{what}: the disk of the Docker engine is full: {message}",
                            "free some space (`docker system df` shows what uses the space), and run the command "
                            "again")  # fmt: skip
    return StackgenError(f"{what} failed: {message}", hint)
