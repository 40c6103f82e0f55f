#!/bin/bash

LLM_SERVER_HOME=/home/me/.llm_server/

port=11434
host=192.0.2.84

mainGpu=0
tensorSplit=16,12,12
splitMode=layer
threads=26

context=262144
temp=0.6
topP=0.95
prio=3
minP=0.00
topK=0.95

modelDir=/home/me/.llm_server/models/

cd "${LLM_SERVER_HOME}"
cd llama.cpp/build/bin/

LLAMA_CACHE=$modelDir GGML_CUDA_FORCE_MMQ=true GGML_CUDA_ENABLE_UNIFIED_MEMORY=1 ./llama-server -hf example-org/Qwen3.5-35B-A3B-GGUF:Q8_0 --port $port --host $host -c $context -ngl 99 --split-mode $splitMode --tensor-split $tensorSplit --main-gpu $mainGpu --temp $temp --top-p $topP --cont-batching --prio $prio --min_p $minP --threads $threads --top-k $topK -ctk q8_0 --kv-unified
