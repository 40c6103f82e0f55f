docker run -p 8080:8080 \
  -v /tank/ai/models:/models \
  ghcr.io/ggml-org/llama.cpp:server-cuda \
  -m /models/gguf/llama-3.3-70b-q4.gguf \
  -c 4096 -ngl 99
