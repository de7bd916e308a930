"""The `vllm` engine: vLLM in this process, or its own server as a child of it."""
