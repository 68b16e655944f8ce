"""A random Llama of two layers, as a GGUF file that transformers reads and the embedded engine serves."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH, INNER, LAYERS, HEADS, SHARED, SIZE = 64, 128, 2, 4, 2, 16
_WORDS = ("user:", " Paris", " Berlin", " Rome", "city", "name", "find", "arguments", " weather", " in")


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE: special tokens, all bytes, a few words built letter by letter."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens, merges = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters], []
    for word in _WORDS:
        made = ""
        for letter in word.replace(" ", "Ġ"):
            if made and f"{made} {letter}" not in merges:
                merges.append(f"{made} {letter}")
                tokens.append(made + letter)
            made += letter
    return list(dict.fromkeys(tokens)), merges


def write_model(path: Path, seed: int = 0) -> Path:
    """Writes the model. Weights are float32 in the file and bfloat16 in training."""
    tokens, merges = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(SIZE)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * columns**-0.5).astype(np.float16).astype(np.float32)

    writer.add_tensor("token_embd.weight", matrix(len(tokens), WIDTH))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for i in range(LAYERS):
        for name, rows, columns in (
            ("attn_q", HEADS * SIZE, WIDTH),
            ("attn_k", SHARED * SIZE, WIDTH),
            ("attn_v", SHARED * SIZE, WIDTH),
            ("attn_output", WIDTH, HEADS * SIZE),
            ("ffn_gate", INNER, WIDTH),
            ("ffn_up", INNER, WIDTH),
            ("ffn_down", WIDTH, INNER),
        ):
            writer.add_tensor(f"blk.{i}.{name}.weight", matrix(rows, columns))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", random.uniform(0.5, 1.5, WIDTH).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
