# docker pull vllm/vllm-openai:v0.14.1-cu130

docker run -itd --name translate-4b-it \
    --ipc=host \
    --network host \
    --shm-size 16G \
    --gpus all \
    -v ~/.cache/huggingface:/root/.cache/huggingface \
    vllm/vllm-openai:v0.14.1-cu130 \
        example-org/vllm-translate-4b-it \
        --served-model-name translate-4b-it \
        --port 8128
