#!/bin/bash
set -euo pipefail

SCRIPT_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$SCRIPT_DIR/common.sh"

INTERNAL_PORT="$BOX_INTERNAL_PORT"

python3 "$SCRIPT_DIR/tcp-forward.py" "$BOX_PUBLIC_PORT" "$BOX_HOST" "$INTERNAL_PORT" &
FWD_PID=$!
trap "kill $FWD_PID 2>/dev/null || true" EXIT

exec ~/vllm-venv/bin/vllm serve "$BOX_MODEL" \
  --host 0.0.0.0 --port "$INTERNAL_PORT" --served-model-name "$BOX_SERVED_NAME" \
  --kv-cache-dtype fp8 --max-model-len "$BOX_MAX_MODEL_LEN" \
  --gpu-memory-utilization "$BOX_GPU_MEMORY" --max-num-seqs "$BOX_MAX_SEQS" \
  --enable-auto-tool-choice --tool-call-parser "$BOX_PARSER" 2>&1 | tee ~/vllm.log
