"""The `openai` engine: any server that speaks OpenAI's completions and chat protocol."""
