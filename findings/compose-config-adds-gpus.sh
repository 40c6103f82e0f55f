#!/usr/bin/env bash
# Docker Compose 2.40.3 (Debian 2.40.3-3): the output of `config`, used as a file, gives all GPUs to a service with none.
#
# Expected  The manual says that `config` prints the model which Compose applies, in canonical format. Written to a file, it
#           has the same meaning as its input: a service with `count: 0` GPUs gets no GPU. (The count is often a variable,
#           `count: ${GPUS}`, so that the same file works on a machine without a GPU.)
# Seen      `config` leaves the 0 out. A GPU entry without a count is read as `count: -1`, which means all GPUs. Both `gpus`
#           and `deploy.resources.reservations.devices` are affected. With the first file, the engine gets 0.
#           `memswap_limit: -1` is lost in another way: `config` writes "-1" as text, which Compose itself refuses.
# Why it    Such a file is what a CI job stores, reviews and deploys. It has all variables resolved and passes `config
# surprises --quiet`. The model server next to it then shares its GPUs with a service that was meant to run on the CPU.
# Exits 0 while this holds, 1 when it has changed. Needs apt-get and dpkg, no Docker engine. Takes about 10 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir" && apt-get download docker-compose=2.40.3-3 >/dev/null 2>&1 && dpkg -x docker-compose_*.deb . ||
  { echo "skipped: apt-get has no docker-compose 2.40.3-3"; exit 0; }
compose() { "$dir/usr/libexec/docker/cli-plugins/docker-compose" "$@"; }
cat > gpus.yaml <<'END'
name: model
services:
  short: {image: server, gpus: [{count: "${GPUS}"}]}
  long:
    image: server
    deploy: {resources: {reservations: {devices: [{driver: nvidia, count: "${GPUS}", capabilities: [gpu]}]}}}
END
echo 'name: memory
services: {server: {image: server, mem_limit: 1g, memswap_limit: -1}}' > memory.yaml
counts() { grep -o 'count: .*' "$1" | tr '\n' ' '; }
for gpus in 0 1; do
  GPUS=$gpus compose -f gpus.yaml config > "first$gpus.yaml" && compose -f "first$gpus.yaml" config > "second$gpus.yaml" ||
    { echo "config failed"; exit 2; }
  echo "count: $gpus is written as '$(counts "first$gpus.yaml")', and read from there as '$(counts "second$gpus.yaml")'"
done
compose -f memory.yaml config > first.yaml || { echo "config failed"; exit 2; }
compose -f first.yaml config --quiet 2>error; code=$?
written=$(sed -n 's/ *memswap_limit: //p' first.yaml)
echo "memswap_limit: -1 is written as '$written', and read with exit code $code: $(tail -n 1 error)"
[[ $(counts second0.yaml) == 'count: -1 count: -1 ' && $(counts second1.yaml) == 'count: 1 count: 1 ' && $code != 0 ]] ||
  { echo "changed: the output of config means the same as its input"; exit 1; }
