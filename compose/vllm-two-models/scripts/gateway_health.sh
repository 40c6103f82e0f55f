#!/bin/bash
# The gateway is healthy if both HAProxy processes answer, even if no model is up. Uses bash, as the image has no curl.
set -eu
for port in 8405 8407; do
  exec 3<>/dev/tcp/127.0.0.1/$port
  printf 'GET /alive HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n' >&3
  read -r _ status _ <&3
  [ "$status" = 200 ]
  exec 3>&-
done
