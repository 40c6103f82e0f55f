#!/bin/bash
# Healthy when HAProxy answers; the image has no curl. Whether models are up, it tells clients itself.
set -eu
exec 3<>/dev/tcp/127.0.0.1/8405
printf 'GET /alive HTTP/1.0\r\n\r\n' >&3
read -r _ status _ <&3
[ "$status" = 200 ]
