"""Greedy decoding by vLLM; see `tests.bench.peers` for the lines it reads and writes."""

import json
import os
import sys
import time
from typing import Any


def main(folder: str) -> None:
    """Answer every line of standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM and its workers print must not come between the answers
    from vllm import LLM, SamplingParams

    model: Any = LLM(
        model=folder,
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=16,
        enable_prefix_caching=False,  # prompts come again, and are to be read again
        seed=0,
    )
    for line in sys.stdin:
        asked = json.loads(line)
        params = SamplingParams(temperature=0.0, max_tokens=asked["tokens"], ignore_eos=True)
        began = time.perf_counter()
        outputs = model.generate(asked["prompts"], params, use_tqdm=False)
        seconds = time.perf_counter() - began
        count = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"tokens_per_second": count / seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
