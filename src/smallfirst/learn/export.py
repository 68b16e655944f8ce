"""From PEFT's adapter to what the embedded engine loads: an unmerged GGUF adapter, or merged Q8_0 weights.

An adapter stays unmerged where it can: it is small, switched per request, and merging into coarse weights rounds it
away (docs/decisions/0003-embedded-weights-format.md). llama.cpp keeps the rows of the q and k projections of Llama in
another order than transformers: within each head the two halves that a rotation pairs are interleaved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from smallfirst.artifact import write_json
from smallfirst.backends.specialist import Manifest, PromptTemplate
from smallfirst.backends.values import Values
from smallfirst.errors import TrainError
from smallfirst.extra import need
from smallfirst.learn.base import Base
from smallfirst.models import copy_fields, file_sha256, write_gguf

Matrix = NDArray[np.float32]
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_FULL = PromptTemplate()
_PREFIX = "base_model.model.model.layers."


class _LoraConfig(msgspec.Struct):
    r: int
    lora_alpha: float
    use_dora: bool = False


class _ModelConfig(msgspec.Struct):
    num_attention_heads: int
    num_key_value_heads: int
    model_type: str


@dataclass(frozen=True, slots=True)
class Factors:
    """An adapter in llama.cpp's names and order: per weight A (rank, in) and B (out, rank); W + alpha / rank * B A."""

    pairs: Mapping[str, tuple[Matrix, Matrix]]
    rank: int
    alpha: float


def read_factors(folder: Path, base: Base) -> Factors:
    """PEFT's adapter in `folder` for the engine. Raises TrainError on what an unmerged adapter cannot hold."""
    try:
        lora = msgspec.json.decode((folder / "adapter_config.json").read_bytes(), type=_LoraConfig)
        tensors = need("safetensors.numpy").load_file(folder / "adapter_model.safetensors")
        model = msgspec.json.decode((base.folder / "config.json").read_bytes(), type=_ModelConfig)
    except (OSError, msgspec.DecodeError) as error:
        raise TrainError(f"There is no adapter in {folder}: {error}.") from error
    if lora.use_dora:
        raise TrainError(
            "The engine's adapters hold no magnitudes, so a DoRA adapter cannot be exported.", hint='Train with "lora".'
        )
    if model.model_type != "llama":
        raise TrainError(f"Adapters of {model.model_type!r} models cannot be exported; only those of 'llama'.")
    heads = {"self_attn.q_proj": model.num_attention_heads, "self_attn.k_proj": model.num_key_value_heads}
    pairs = {}
    for name in sorted(n for n in tensors if n.endswith(".lora_A.weight")):
        module = name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        layer, _, kind = module.partition(".")
        a = tensors[name].astype(np.float32)
        b = tensors[name.replace(".lora_A.", ".lora_B.")].astype(np.float32)
        pairs[f"blk.{layer}.{_NAMES[kind]}.weight"] = (a, interleaved(b, heads[kind]) if kind in heads else b)
    return Factors(pairs, lora.r, lora.lora_alpha)


def interleaved(rows: Matrix, heads: int) -> Matrix:
    """Rows of a q or k projection in llama.cpp's order: of head h, row 2 i + j is transformers' row i + j d / 2."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def export_adapter(
    folder: Path,
    base: Base,
    target: Path,
    *,
    prompt: PromptTemplate = _FULL,
    recipe: Mapping[str, Any] | None = None,
    parents: tuple[str, ...] = (),
    values: Mapping[str, Mapping[str, Values]] | None = None,
) -> Manifest:
    """Writes `target` (GGUF, unmerged, float16) from PEFT's adapter in `folder`, and the manifest beside it.

    Raises TrainError when the adapter is not one that the engine takes, DataError when there is no room for it.
    """
    import gguf

    factors = read_factors(folder, base)
    draft = target.with_suffix(".tmp")
    writer = gguf.GGUFWriter(draft, arch="llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", factors.alpha)
    for name, (a, b) in factors.pairs.items():
        writer.add_tensor(f"{name}.lora_a", a.astype(np.float16))
        writer.add_tensor(f"{name}.lora_b", b.astype(np.float16))
    write_gguf(writer)
    manifest = Manifest(
        sha256=file_sha256(draft),
        base_sha256=base.sha256,
        prompt=prompt,
        recipe=recipe or {},
        parents=parents,
        values=values or {},
    )
    draft.replace(target)
    write_json(manifest, target.with_suffix(".json"))
    return manifest


def export_merged(folder: Path, base: Base, weights: Path, target: Path) -> None:
    """Writes `target`: the model `weights` (GGUF) with the adapter added to its matrices, those in Q8_0."""
    import gguf
    from gguf.quants import dequantize, quantize

    factors = read_factors(folder, base)
    reader = gguf.GGUFReader(weights)
    draft = target.with_suffix(".tmp")
    writer = gguf.GGUFWriter(draft, arch=reader.fields["general.architecture"].contents())
    copy_fields(reader, writer)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if tensor.name in factors.pairs:
            a, b = factors.pairs[tensor.name]
            merged = dequantize(data, kind) + factors.alpha / factors.rank * (b @ a)
            kind = gguf.GGMLQuantizationType.Q8_0
            data = quantize(merged.astype(np.float32), kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    write_gguf(writer)
    draft.replace(target)
