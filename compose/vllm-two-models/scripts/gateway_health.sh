#!/bin/bash
# Healthy if both HAProxy processes answer, whether or not models are up. Uses bash, because the image has no curl.
set -eu
for port in 8405 8407; do
  exec 3<>/dev/tcp/127.0.0.1/$port
  printf 'GET /alive HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n' >&3
  read -r _ status _ <&3
  [ "$status" = 200 ]
  exec 3>&-
done
