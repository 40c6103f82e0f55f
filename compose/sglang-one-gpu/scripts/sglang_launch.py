#!/usr/bin/env python3
"""Starts SGLang with the key of the environment: sglang_launch.py [flags of `sglang serve`].

SGLang 0.5.23 takes its key only from a flag, which the process list shows, and writes all its settings with the key
into its log (entrypoints/engine.py, `server_args=`). So the key goes into the arguments inside this process, and out
of every record of the log. SGLang's processes import this module again, so it does nothing else when it is imported.
"""

import logging
import os
import sys

KEY = os.environ.get("SGLANG_API_KEY", "")


class Redacting(logging.LogRecord):
    """A record of the log without the key."""

    def getMessage(self):  # noqa: N802  the name of logging
        text = super().getMessage()
        return text.replace(KEY, "***") if KEY else text


logging.setLogRecordFactory(Redacting)


def main():
    if not KEY:
        sys.exit("sglang_launch.py: SGLANG_API_KEY is empty: without a key, SGLang would answer everybody")
    sys.argv = ["sglang", "serve", *sys.argv[1:], "--api-key", KEY]
    from sglang.cli.main import main as serve

    serve()


if __name__ == "__main__":
    main()
