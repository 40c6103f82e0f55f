#!/usr/bin/env bash
set -euo pipefail

MODEL_CHECKPOINT="${MODEL_CHECKPOINT:-example-org/ocr-2}"
VLLM_MODEL_NAME="${VLLM_MODEL_NAME:-ocr}"
VLLM_PORT="${VLLM_PORT:-8000}"
APP_PORT="${APP_PORT:-8080}"
GPU_MEMORY_UTILIZATION="${GPU_MEMORY_UTILIZATION:-0.90}"
MAX_MODEL_LEN="${MAX_MODEL_LEN:-}"
VLLM_EXTRA_ARGS="${VLLM_EXTRA_ARGS:-}"

echo "[entrypoint] Model checkpoint : ${MODEL_CHECKPOINT}"

VLLM_ARGS=(
  serve "${MODEL_CHECKPOINT}"
  --served-model-name "${VLLM_MODEL_NAME}"
  --port "${VLLM_PORT}"
  --host 127.0.0.1
  --gpu-memory-utilization "${GPU_MEMORY_UTILIZATION}"
  --trust-remote-code
)
if [[ -n "${MAX_MODEL_LEN}" ]]; then
  VLLM_ARGS+=(--max-model-len "${MAX_MODEL_LEN}")
fi
if [[ -n "${VLLM_EXTRA_ARGS}" ]]; then
  EXTRA=(${VLLM_EXTRA_ARGS})
  VLLM_ARGS+=("${EXTRA[@]}")
fi

echo "[entrypoint] Launching: vllm ${VLLM_ARGS[*]}"
vllm "${VLLM_ARGS[@]}" &
VLLM_PID=$!

cleanup() {
  kill -TERM "${VLLM_PID}" 2>/dev/null || true
  wait 2>/dev/null || true
}
trap cleanup TERM INT
