"""Checks that the containers' users can read the models, and the files and folders that stack.yaml names by a path."""

from __future__ import annotations

from typing import Any

from stackgen.doctor.finding import DoctorInputs, Results, fail, ok, warn
from stackgen.doctor.model import local_models, report_unread
from stackgen.doctor.model_facts import Unreadable

__all__ = ["check_readable"]

# without these, an engine does not start; other files may be for something else
NEEDED = (".chat_template", ".path", ".speculative.model")


def check_readable(inputs: DoctorInputs) -> Results:
    """The container's user may read the model's files, and the files and folders that stack.yaml names by a path."""
    yield from report_unread(inputs, "the container's user can read the model")
    for place, model, facts in local_models(inputs):
        if not facts.exists:
            continue
        user = _find_user(inputs, model, facts.path)
        closed = [one for one in facts.unreadable if not _may_read(user, model, one)]
        if closed:
            files = f"{len(closed)} file{'s' if len(closed) > 1 else ''}"
            yield fail(
                f"the container's user can't read {files} of the model",
                evidence=_describe(closed[0], user), fix=f"run `chmod -R a+rX {facts.path}`", place=f"{place}.model",
            )  # fmt: skip
        else:
            yield ok("the container's user can read the model", evidence="modes of the folder and its files",
                     place=place)  # fmt: skip
    yield from _check_named(inputs)


def _check_named(inputs: DoctorInputs) -> Results:
    models = dict(inputs.model_specs())
    found = False
    for place, path, unreadable in inputs.named:
        model = models.get(place.partition(".")[0])
        user = _find_user(inputs, model, path) if model else ""
        # certificates are for services with different users
        closed = [one for one in unreadable if model is None or not _may_read(user, model, one)]
        if closed:
            found = True
            who, evidence = "the container's user", _describe(closed[0], user)
            if model is None:
                who, evidence = "the users of some containers", f"{closed[0][0]} has mode {closed[0][3]:04o}"
            report = fail if model and place.endswith(NEEDED) else warn
            yield report(f"{who} can't read {path}", evidence=evidence, fix=f"run `chmod -R a+rX {path}`", place=place)
    if inputs.named and not found:
        yield ok("the containers' users can read the files and folders with a path in stack.yaml",
                 evidence=", ".join(path for _, path, _ in inputs.named))  # fmt: skip


def _find_user(inputs: DoctorInputs, model: Any, path: str) -> str:
    """The user who reads the files of `model`, as in Compose; "" for root."""
    services = inputs.services()
    mounting = next((one for one in services if _serves(one, path)), None)
    # if no service mounts the model, the first service of the engine shows which user would read the files
    engine = next((one for one in services if one.engine == model.engine and one.role in ("engine", "worker")), None)
    service = mounting or engine
    return str(model.user or (service.user if service else ""))


def _may_read(user: str, model: Any, one: Unreadable) -> bool:
    """Whether a file that not everybody may read is one that `user` may read, or may be one."""
    _, owner, group, mode = one
    uid, _, gid = user.partition(":")
    # all capabilities are dropped, so root in the container can't read more than others; only numeric users count,
    # because only the image knows the uid of a name
    if owner == (int(uid or 0) if (uid or "0").isdecimal() else None):
        return True
    groups = {gid or "0", *model.group_add}
    return str(group) in groups and mode & 0o040 == 0o040


def _describe(one: Unreadable, user: str) -> str:
    return f"{one[0]} belongs to uid {one[1]} and has mode {one[3]:04o}; the container runs as {user or 'root'}"


def _serves(service: Any, path: str) -> bool:
    """Whether a word of the command is the path of the model in the container."""
    for mount in service.mounts:
        source = getattr(mount, "source", "")
        # the mount may be the repository of a Hub snapshot
        if source and (path == source or path.startswith(f"{source}/")):
            return mount.target + path[len(source) :] in service.command
    return False
