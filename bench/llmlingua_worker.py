"""LLMLingua in its own interpreter: JSON lines {id, documents, question, budget} in, {id, text, seconds, tokens} out.

Needs `pip install llmlingua "transformers<4.50" gguf` in an environment of its own (see `compress.py --llmlingua`). The
settings are those that its authors give for questions over documents (LongLLMLingua). Its token counter for OpenAI's
models would be fetched from the network; the model's own stands in.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import tiktoken
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(weights: str, folder: str) -> None:
    """Compress what comes on standard input with the GGUF file `weights`, kept in `folder` as transformers wants it."""
    torch.set_num_threads(1)
    path, kept = Path(weights), Path(folder)
    if not (kept / "config.json").exists():
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(kept)
        AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(kept)
    tokenizer = AutoTokenizer.from_pretrained(kept)
    tiktoken.encoding_for_model = lambda _: SimpleNamespace(encode=tokenizer.encode)
    from llmlingua import PromptCompressor

    compressor = PromptCompressor(str(kept), device_map="cpu")
    for line in sys.stdin:
        job = json.loads(line)
        begin = time.perf_counter()
        made = compressor.compress_prompt(
            job["documents"],
            question=job["question"],
            target_token=job["budget"],
            condition_in_question="after_condition",
            reorder_context="sort",
            dynamic_context_compression_ratio=0.3,
            condition_compare=True,
            context_budget="+100",
            rank_method="longllmlingua",
            concate_question=False,
        )
        seconds = time.perf_counter() - begin
        read = sum(len(tokenizer.encode(text)) for text in job["documents"])
        print(json.dumps({"id": job["id"], "text": made["compressed_prompt"], "seconds": seconds, "tokens": read}))
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
