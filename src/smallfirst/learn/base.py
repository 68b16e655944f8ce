"""The model that an adapter is trained on: read from a GGUF file once, kept dense for the next time.

Reading a GGUF file takes transformers most of a minute on a small machine, and packed weights are unpacked in every
product; so the dense model is kept under `models.home()`, named by the file's sha256.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallfirst import models
from smallfirst.errors import ModelFileError, TrainError
from smallfirst.extra import need


@dataclass(frozen=True, slots=True)
class Base:
    """A dense model as a folder that transformers loads, and the sha256 of the file it came from."""

    folder: Path
    sha256: str

    def tokenizer(self) -> Any:
        return need("transformers").AutoTokenizer.from_pretrained(self.folder)

    def model(self, dtype: Any, quantization: Any = None) -> Any:
        """The causal language model on the CPU, frozen; on the GPU when quantised."""
        given = {} if quantization is None else {"quantization_config": quantization, "device_map": {"": 0}}
        made = need("transformers").AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype, **given)
        return made.requires_grad_(False)


def find_base(weights: Path) -> Base:
    """The dense model of a GGUF file, made now if it is not there. Raises ModelFileError, TrainError (disk full)."""
    sha256 = models.file_sha256(weights)
    folder = models.home() / "dense" / sha256[:16]
    if not folder.exists():
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            draft.mkdir(parents=True, exist_ok=True)
            _unpack(weights, draft)
            draft.rename(folder)
        except FileExistsError:
            pass  # another process was faster
        except OSError as error:
            if not folder.exists():
                raise TrainError(f"Cannot keep the dense model under {models.home()}: {error}.") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return Base(folder, sha256)


def _unpack(weights: Path, folder: Path) -> None:
    transformers, torch = need("transformers"), need("torch")
    place, name = str(weights.resolve().parent), weights.name
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=name)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            place,
            gguf_file=name,
            dtype=torch.bfloat16,
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
    except (ValueError, KeyError, RuntimeError) as error:
        raise ModelFileError(
            f"{weights} cannot be read for training: {error}.", hint="Name a GGUF file that transformers can load."
        ) from error
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
