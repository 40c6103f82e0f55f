docker run --gpus all \                                 # every GPU
    -v ~/.cache/huggingface:/root/.cache/huggingface \  # the cache
    -p 8000:8000 \                                      # the port
    --ipc=host \                                        # shared memory
    vllm/vllm-openai:nightly \                          # or a release
        --model Qwen/Qwen3-VL-235B-A22B-Instruct \      # the model
        --tensor-parallel-size 8 \                      # 8 GPUs
        --limit-mm-per-prompt.video 0                   # images only
