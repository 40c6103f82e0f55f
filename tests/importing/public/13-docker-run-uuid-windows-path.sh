set -euo pipefail
export MSYS_NO_PATHCONV=1
export MSYS2_ARG_CONV_EXCL='*'

GPU0_UUID="GPU-00000000-1111-2222-3333-444444444444"   # from nvidia-smi -L

docker rm -f vllm-glm 2>/dev/null || true

docker run -d --name vllm-glm \
  --gpus all \
  -e CUDA_VISIBLE_DEVICES="$GPU0_UUID" \
  -e CUDA_DEVICE_ORDER=PCI_BUS_ID \
  --ipc=host \
  -p 127.0.0.1:30001:30001 \
  -v "C:/Users/me/models/glm47-flash-awq:/models/glm47-flash-awq:ro" \
  `# your model directory` \
  vllm/vllm-openai:nightly \
  /models/glm47-flash-awq \
  --served-model-name glm-4.7-flash \
  --max-model-len 65536 \
  --gpu-memory-utilization 0.92 \
  --tool-call-parser glm47 \
  --reasoning-parser glm45 \
  --enable-auto-tool-choice \
  --host 0.0.0.0 \
  --port 30001
