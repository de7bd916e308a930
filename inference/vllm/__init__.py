"""The `vllm` engine: vLLM's own server as a child process of this one."""
