"""OpenAI's protocol over the engine and the workflows: chat, completions, embeddings, models."""
