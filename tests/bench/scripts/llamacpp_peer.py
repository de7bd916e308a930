"""Greedy decoding by llama.cpp; see `tests.bench.peers` for the lines it reads and writes."""

import json
import sys
import time
from itertools import islice

from llama_cpp import Llama


def main(path: str, threads: int) -> None:
    """Answer every line of standard input."""
    model = Llama(
        path, n_ctx=8192, n_threads=threads, n_threads_batch=threads, seed=0, verbose=False
    )
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        for prompt in asked["prompts"]:
            model.reset()  # or the prompt of the last call would be found again
            text = isinstance(prompt, str)
            ids = model.tokenize(prompt.encode(), add_bos=False) if text else prompt
            made = list(islice(model.generate(ids, temp=0.0, top_k=1), asked["tokens"]))
            assert len(made) == asked["tokens"]
        seconds = time.perf_counter() - began
        count = len(asked["prompts"]) * asked["tokens"]
        print(json.dumps({"tokens_per_second": count / seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
