#!/usr/bin/env bash
# podman-compose 1.6.0: services with `gpus: all`, or with a reserved GPU without `driver`, start without a GPU.
#
# Expected  A service with `gpus: all` (Compose specification) is created with `--device nvidia.com/gpu=all`, as with
#           `deploy.resources.reservations.devices` and `driver: nvidia`, or podman-compose refuses the field.
# Seen      Only the service with `driver: nvidia` gets a device. In the other two, the request for GPUs is left out.
#           podman-compose prints no warning, also with --verbose, and exits with 0.
# Why it    The fields are valid, `driver` is optional, and Docker Compose gives all three services their GPUs. A server that
# surprises can run on the CPU (llama.cpp, Ollama) does so, and is just slow. One of these spellings works, so GPU support
#           looks complete.
# The script's `podman` is a stand-in that writes down the commands it gets. docker-compose 2.40.3 confirms the file.
# Exits 0 while this holds, 1 when it has changed. Needs apt-get, dpkg, python3 with venv, and a package index. Takes about 20 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
(cd "$dir" && apt-get download docker-compose=2.40.3-3 >/dev/null 2>&1 && dpkg -x docker-compose_*.deb .) ||
  { echo "skipped: apt-get has no docker-compose 2.40.3-3"; exit 0; }
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q podman-compose==1.6.0 >&2 ||
  { echo "could not install the packages"; exit 2; }
mkdir "$dir/gpus" && cd "$dir/gpus" || exit 2
cat > compose.yaml <<'END'
name: gpus
services:
  short: {image: server, gpus: all}
  default: {image: server, deploy: {resources: {reservations: {devices: [{count: all, capabilities: [gpu]}]}}}}
  nvidia:
    image: server
    deploy: {resources: {reservations: {devices: [{driver: nvidia, count: all, capabilities: [gpu]}]}}}
END
cat > podman <<END
#!/bin/sh
echo "\$*" >> "$dir/commands"
case "\$*" in
  --version*) echo "podman version 5.8.6" ;;
  *json*) echo "[]" ;;
  "pod exists"*) exit 1 ;;
esac
END
chmod +x podman
asked=$("$dir/usr/libexec/docker/cli-plugins/docker-compose" config --format json | grep -c '"count": -1')
"$dir/venv/bin/podman-compose" --podman-path "$PWD/podman" --verbose up --detach >"$dir/output" 2>&1; code=$?
devices() { grep "^create --name=gpus_$1_1 " "$dir/commands" | grep -o -- '--device [^ ]*' | tr '\n' ' '; }
created=$(grep -c '^create --name=gpus_' "$dir/commands")
warned=$(grep -ciE 'warn|gpu.*(ignored|not supported|unsupported)' "$dir/output")
for service in short default nvidia; do echo "$service: '$(devices $service)'"; done
echo "Docker Compose asks for the GPUs of $asked services; podman-compose exits with $code after $warned warnings"
[[ $asked == 3 && $created == 3 && $code == 0 ]] || { echo "the script could not measure"; exit 2; }
[[ -z "$(devices short)$(devices default)" && $(devices nvidia) == '--device nvidia.com/gpu=all ' && $warned == 0 ]] ||
  { echo "changed: podman-compose passes the GPUs on, or warns"; exit 1; }
