#!/usr/bin/env bash
# openai 3.57.0, anthropic 2.14.0: an empty OPENAI_BASE_URL or ANTHROPIC_BASE_URL ends in "Connection error."
#
# Expected  An empty variable counts as unset, as an empty HTTP_PROXY does, or the client names the variable.
# Seen      The base URL is "". The client tries three times, and then raises APIConnectionError: "Connection error."
# Why it    Compose passes an empty variable for `OPENAI_BASE_URL: ${OPENAI_BASE_URL:-}`. The error sends people to
# surprises firewalls and DNS. The reason (the URL has no protocol) is only in the exception's __cause__.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 20 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q openai==3.57.0 anthropic==2.14.0 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import os, sys

os.environ |= {"OPENAI_BASE_URL": "", "ANTHROPIC_BASE_URL": "", "OPENAI_API_KEY": "none", "ANTHROPIC_API_KEY": "none"}
import anthropic
import openai

seen = []
for client in (openai.OpenAI(), anthropic.Anthropic()):
    try:
        client.models.list()
    except (openai.APIConnectionError, anthropic.APIConnectionError) as error:
        seen.append((str(client.base_url), str(error)))
        print(f"{type(client).__name__}: base URL {seen[-1][0]!r}, error {seen[-1][1]!r}, because {error.__cause__}")
sys.exit(9 * (seen != [("", "Connection error.")] * 2))
PY
"$dir/venv/bin/python" "$dir/try.py"
case $? in
  0) ;;
  9) echo "changed: an empty variable has another effect"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
