"""A small model with an adapter on it, and how its logits are computed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smallfirst.errors import TrainError
from smallfirst.extra import need
from smallfirst.learn.base import Base
from smallfirst.learn.packing import Batch

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Logits = Callable[[Batch], Any]
"""Batch -> next-token logits (places that have a target, vocabulary)."""


def new_adapter(base: Base, method: str, rank: int, alpha: int) -> Any:
    """PEFT's model with a fresh adapter (float32) on the frozen base (bfloat16), on the GPU where there is one.

    Raises TrainError when `method` "qlora" cannot run here.
    """
    torch, peft = need("torch"), need("peft")
    model = base.model(torch.bfloat16, _quantization(torch) if method == "qlora" else None)
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(TARGETS), use_dora=method == "dora", task_type="CAUSAL_LM"
    )
    if method != "qlora" and torch.cuda.is_available():
        model = model.cuda()
    return peft.get_peft_model(model, config)


def load_adapter(base: Base, folder: Path, *, trainable: bool = False) -> Any:
    """The base (bfloat16) with a saved adapter (float32), on the CPU."""
    torch, peft = need("torch"), need("peft")
    return peft.PeftModel.from_pretrained(base.model(torch.bfloat16), folder, is_trainable=trainable)


def logits_of(model: Any) -> Logits:
    """The fastest way there is to this model's logits: `LoraLlama` for plain LoRA on Llama, else PEFT's modules."""
    from smallfirst.learn.llama import LoraLlama, supports

    run = LoraLlama(model).logits if supports(model) else peft_logits(model)
    return lambda batch: run(batch.to(model.device))


def peft_logits(model: Any) -> Logits:
    """`LoraLlama.logits` for any PEFT model, computed by its own modules."""
    torch, causal = need("torch"), model.get_base_model()

    def logits(batch: Batch) -> Any:
        visible = torch.zeros(batch.tokens, batch.tokens, dtype=torch.bool, device=batch.ids.device)
        for block in batch.blocks:
            visible[block.begin : block.end, block.first : block.end] = block.visible
        with torch.autocast(batch.ids.device.type, torch.bfloat16):
            made = causal.model(
                input_ids=batch.ids[None],
                position_ids=batch.positions[None],
                attention_mask=visible[None, None],
                use_cache=False,
            )
            return causal.lm_head(made.last_hidden_state[0, batch.wanted])

    return logits


def _quantization(torch: Any) -> Any:
    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        missing = "bitsandbytes" if torch.cuda.is_available() else "a CUDA GPU"
        raise TrainError(
            f'Method "qlora" needs {missing}, which is not here.', hint='Use "lora": small models fit as they are.'
        )
    return need("transformers").BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
