"""The arguments of `stackgen keys`."""

from __future__ import annotations

from stackgen.cli.parsers.base import Subcommands, add_context_argument, add_lock_argument

__all__ = ["add_keys_command"]


def add_keys_command(subcommands: Subcommands) -> None:
    """Adds `stackgen keys`."""
    keys = subcommands.add(
        "keys",
        "list, create, rotate and remove API keys of the gateway's clients, and report the usage of each key",
        stack=False,
    )
    keys.options_first = True
    keys.add_argument(
        "action",
        choices=("list", "new", "rotate", "remove", "usage"),
        help="`new`: create a key for each new name. `rotate`: add another key with an existing name; the old keys"
        " stay valid. `remove`: remove all keys with a name. `usage`: print the requests and tokens of each key",
    )
    keys.add_argument(
        "names", nargs="*", metavar="name",
        help="name of the key, or several names for `new`; `default` is the key in .env. To choose a stack, use"
        " `--stack`, or add its folder as the last argument (default: the current folder)",
    )  # fmt: skip
    keys.add_argument("--stack", help="stack.yaml or its folder")
    keys.add_argument(
        "--older", action="store_true",
        help="only for the action `remove`: remove all keys with this name except the newest",
    )  # fmt: skip
    new = keys.add_argument_group("only for the action `new`")
    new.add_argument(
        "--from", dest="source", metavar="FILE",
        help="read names from a file, one on each line (`-`: standard input), or from a table (CSV or YAML) with the "
        "fields of gateway.keys. Names of a table that stack.yaml does not list are added to gateway.keys",
    )  # fmt: skip
    new.add_argument(
        "--missing", action="store_true",
        help="skip names that have a key. Without names: all names under gateway.keys that have no key",
    )  # fmt: skip
    new.add_argument(
        "--write-to", metavar="FOLDER",
        help="write each key into its own file, FOLDER/NAME.key (mode 0600), instead of printing it. The file sets "
        "OPENAI_API_KEY and OPENAI_BASE_URL",
    )  # fmt: skip
    new.add_argument("--base-url", metavar="URL", help="base URL for the files (default: the stack's, on this machine)")
    add_context_argument(keys)
    keys.add_argument(
        "--yes", action="store_true", help="for `target: kubernetes`: change the Secret in the cluster without asking"
    )
    add_lock_argument(keys)
