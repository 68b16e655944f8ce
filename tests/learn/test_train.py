"""Training and export, with a real model of two random layers: PEFT, the written-out passes, the embedded engine."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import gguf
import numpy as np
import pytest
import tiny
from gguf.quants import dequantize

torch = pytest.importorskip("torch", reason="training needs pip install 'smallfirst[learn]'")
pytest.importorskip("peft", reason="training needs pip install 'smallfirst[learn]'")

from safetensors.numpy import load_file  # noqa: E402

from smallfirst.backends.llamacpp import EngineConfig, LlamaCppBackend  # noqa: E402
from smallfirst.backends.specialist import PromptTemplate, read_manifest  # noqa: E402
from smallfirst.errors import TrainError  # noqa: E402
from smallfirst.learn import adapter, export, train  # noqa: E402
from smallfirst.learn.base import Base, find_base  # noqa: E402
from smallfirst.learn.curve import Point, draw  # noqa: E402
from smallfirst.learn.llama import LoraLlama, supports  # noqa: E402
from smallfirst.learn.packing import Batch, Encoded, Example, Group, batches, encode, to_tensors, together, tokens_of  # noqa: E402
from smallfirst.learn.prefer import Pair, PreferConfig, prefer  # noqa: E402
from smallfirst.types import Request, Sampling  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CITIES = ("Paris", "Berlin", "Rome", "Oslo", "Bern", "Prague")
TEMPLATE = PromptTemplate("pruned")
QUICK = train.TrainConfig(
    rank=4,
    alpha=8,
    epochs=1,
    learning_rate=3e-2,
    warmup=0.1,
    step_tokens=128,
    threads=1,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "tiny.gguf")


@pytest.fixture(scope="module")
def base(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    """The tiny model, unpacked once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLFIRST_HOME", str(tmp_path_factory.mktemp("home")))
        yield find_base(weights)


def ask(city: str, **fields: Any) -> Request:
    message = {"role": "user", "content": f"weather in {city}"}
    return Request(wire="chat", body={}, model="m", messages=(message,), sampling=Sampling(max_tokens=24), **fields)


def examples(times: int = 1) -> list[Example]:
    """Requests for the weather and their calls, some longer than others."""
    made = []
    for city in CITIES * times:
        prompt = TEMPLATE.pruned(ask(city))
        assert prompt is not None
        made.append(
            Example(f"{city}{len(made)}", city, prompt, f'{{"name": "find", "arguments": {{"city": "{city}"}}}}')
        )
    return made


def fresh(base: Base, method: str = "lora") -> Any:
    """An adapter in float32 whose B is random, so that it changes the answer."""
    torch.manual_seed(0)
    model = adapter.new_adapter(base, method, 4, 8).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def losses(run: Callable[..., Any], groups: Sequence[Group]) -> Any:
    """The sum of the targets' cross-entropies."""
    batch = to_tensors(groups)
    return torch.nn.functional.cross_entropy(run(batch), batch.targets, reduction="sum")


def conversation(base: Base) -> list[Encoded]:
    """Calls of one conversation, each of whose prompts goes on from the one before, and answers of their own."""
    prompt = ""
    made: list[Example] = []
    for city in CITIES:
        prompt += f"user: weather in {city}\n"
        made.append(Example(city, "one", prompt, f'{{"city": "{city}"}}'))
    return encode(made, base.tokenizer(), 512)


def test_examples_cost_what_they_cost_alone(base: Base) -> None:
    """The loss of examples that share prompts, blocks and batches is the sum of the losses that each has alone."""
    encoded = [*conversation(base), *encode(examples(), base.tokenizer(), 512)]
    groups = together(encoded, 2048)
    assert sorted(e.prompt for group in groups for e in group) == sorted(e.prompt for e in encoded)
    run = LoraLlama(fresh(base)).logits
    with torch.no_grad():
        shared = float(losses(run, groups))
        alone = sum(float(losses(run, [[e]])) for e in encoded)
    assert shared == pytest.approx(alone, rel=1e-5)


def test_a_conversation_is_read_once(base: Base) -> None:
    """Calls of one conversation take the tokens of its longest prompt and of their answers, as far as a limit goes."""
    encoded = conversation(base)
    [group] = together(encoded, 2048)
    assert tokens_of(group) == to_tensors([group]).tokens
    assert tokens_of(group) == len(encoded[-1].prompt) - 1 + sum(len(e.completion) for e in encoded)
    assert len(together(encoded, 1)) == len(encoded)


def test_batches_stay_within_their_tokens(base: Base) -> None:
    """Batches have at most the given tokens, unless one group alone is larger, and lose no group."""
    groups = together([*conversation(base), *encode(examples(4), base.tokenizer(), 512)], 2048)
    made = list(batches(groups, 128))
    assert [group for batch in made for group in batch] == groups
    assert all(len(batch) == 1 or to_tensors(batch).tokens <= 128 for batch in made)


def test_the_written_out_passes_are_pefts(base: Base) -> None:
    """Loss and gradient of every LoRA parameter equal those of PEFT's own modules."""
    model = fresh(base)
    groups = together([*conversation(base), *encode(examples(), base.tokenizer(), 512)], 2048)

    def peft(batch: Batch) -> Any:
        causal = model.get_base_model()
        mask = torch.full((1, 1, batch.tokens, batch.tokens), -1e9)
        for block in batch.blocks:
            mask[0, 0, block.begin : block.end, block.first : block.end].masked_fill_(block.visible, 0)
        ids, positions = batch.ids[None], batch.positions[None]
        hidden = causal.model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
        return causal.lm_head(hidden.last_hidden_state[0, batch.wanted])

    found = []
    for run in (peft, LoraLlama(model).logits):
        loss = losses(run, groups)
        loss.backward()
        found.append((float(loss.detach()), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
        model.zero_grad(set_to_none=True)
    (expected, gradients), (loss, own) = found
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def test_only_plain_lora_takes_the_written_out_passes(base: Base) -> None:
    """A DoRA adapter computes more, so it goes through PEFT."""
    assert supports(fresh(base))
    assert not supports(fresh(base, "dora"))


def test_training_lowers_the_loss_and_leaves_its_curve(base: Base, tmp_path: Path) -> None:
    """The validation loss falls by more than half, progress is reported, and the curve is a well-formed picture."""
    seen: list[train.Progress] = []
    result = train.train(base, examples(8), examples(), tmp_path, replace(QUICK, epochs=3), report=seen.append)
    scores = [p.score for p in result.curve if p.score is not None]
    assert result.ended == "epochs"
    assert result.score == max(scores) > -result.curve[0].loss / 2
    assert [p.step for p in seen] == list(range(1, result.steps + 1))
    assert seen[-1].tokens == result.tokens
    assert ElementTree.parse(tmp_path / "curve.svg").getroot().tag.endswith("svg")
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"adapter_config.json", "adapter_model.safetensors", "curve.svg"}


def test_parts_of_a_step_side_by_side_are_that_step(base: Base, tmp_path: Path) -> None:
    """Steps of all examples in two parts, each on a core of its own, lead where the same steps in one part lead, and
    leave torch's number of threads as it was."""
    before = torch.get_num_threads()
    config = replace(QUICK, epochs=4, step_tokens=4096, evaluations=1)
    losses = []
    for threads in (1, 2):
        result = train.train(base, examples(8), examples(), tmp_path / str(threads), replace(config, threads=threads))
        losses.append([point.loss for point in result.curve])
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][-1] < losses[0][0] / 1.2
    assert torch.get_num_threads() == before


def test_the_best_adapter_by_the_metric_is_kept(base: Base, tmp_path: Path) -> None:
    """Training ends when the metric stays worse for as long as patience lasts; the adapter that was best is left."""
    scores, kept = iter([0.5, 0.9, 0.1, 0.1]), []

    def metric(folder: Path) -> float:
        kept.append(load_file(folder / "adapter_model.safetensors"))
        return next(scores)

    config = replace(QUICK, evaluations=8, patience=2, epochs=4)
    result = train.train(base, examples(8), (), tmp_path, config, metric=metric)
    assert (result.ended, result.score) == ("patience", 0.9)
    left = load_file(tmp_path / "adapter_model.safetensors")
    assert all(np.array_equal(left[name], kept[1][name]) for name in left)


def test_a_time_limit_ends_training_with_an_adapter(base: Base, tmp_path: Path) -> None:
    """When the minutes are over, training stops and evaluates what it has."""
    result = train.train(base, examples(8), examples(), tmp_path, replace(QUICK, max_minutes=1e-9))
    assert (result.ended, result.steps) == ("minutes", 1)
    assert math.isfinite(result.score)
    assert (tmp_path / "adapter_model.safetensors").exists()


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_train as t
from dataclasses import replace
from smallfirst.learn.base import Base
t.train.train(Base(Path(sys.argv[2]), "x"), t.examples(8), t.examples(), Path(sys.argv[3]), t.RESUMED)
"""
RESUMED = replace(QUICK, epochs=2, checkpoint_s=0, evaluations=1)


def test_a_killed_training_continues_where_it_was(base: Base, tmp_path: Path) -> None:
    """Killed between steps and run again, training ends with the adapter that it reaches undisturbed."""
    base = Base(base.folder, "x")
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(base.folder), str(broken)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (broken / "checkpoint.pt").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert (broken / "checkpoint.pt").exists()
    resumed: list[int] = []
    train.train(base, examples(8), examples(), broken, RESUMED, report=lambda p: resumed.append(p.step))
    train.train(base, examples(8), examples(), whole, RESUMED)
    assert resumed[0] > 1
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (broken, whole))
    assert all(np.allclose(one[name], other[name], atol=1e-5) for name in one)


def test_a_checkpoint_of_something_else_is_refused(base: Base, tmp_path: Path) -> None:
    """Another configuration or material does not continue a training; the error says what to do."""
    torch.save({"plan": "other"}, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainError, match="another folder"):
        train.train(base, examples(), examples(), tmp_path, QUICK)


def test_what_cannot_be_trained_says_so(base: Base, tmp_path: Path) -> None:
    """No examples, examples that are all too long, nothing to evaluate on, and impossible settings are clear errors."""
    with pytest.raises(TrainError, match="None of the 0 examples"):
        train.train(base, (), examples(), tmp_path, QUICK)
    with pytest.raises(TrainError, match="at most 8 tokens"):
        train.train(base, examples(), examples(), tmp_path, replace(QUICK, longest=8))
    with pytest.raises(TrainError, match="nothing to evaluate"):
        train.train(base, examples(), (), tmp_path, QUICK)
    with pytest.raises(TrainError, match="rank must be greater than 0"):
        replace(QUICK, rank=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_qlora_without_a_gpu_says_so(base: Base, tmp_path: Path) -> None:
    """QLoRA names what is missing."""
    with pytest.raises(TrainError, match="CUDA"):
        train.train(base, examples(), examples(), tmp_path, replace(QUICK, method="qlora"))


def test_dora_trains_but_is_not_exported(base: Base, weights: Path, tmp_path: Path) -> None:
    """DoRA runs through PEFT; the engine's adapters cannot hold its magnitudes, which export says."""
    result = train.train(base, examples(2), examples(), tmp_path, replace(QUICK, method="dora"))
    assert math.isfinite(result.score)
    with pytest.raises(TrainError, match="DoRA"):
        export.export_adapter(tmp_path, base, tmp_path / "adapter.gguf")


@pytest.fixture(scope="module")
def trained(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that has learned some of its examples."""
    folder = tmp_path_factory.mktemp("trained")
    train.train(base, examples(16), examples(), folder, replace(QUICK, epochs=3))
    return folder


def by_name(path: Path) -> dict[str, Any]:
    return {t.name: np.array(dequantize(t.data, t.tensor_type), np.float32) for t in gguf.GGUFReader(path).tensors}


def test_exported_matrices_are_the_formula(base: Base, weights: Path, trained: Path, tmp_path: Path) -> None:
    """The file's matrices + alpha / rank * B A are PEFT's merged ones in llama.cpp's order; Q8_0 is a step off.

    A step of Q8_0 is a 127th of the largest of 32 values.
    """
    target, whole = tmp_path / "adapter.gguf", tmp_path / "merged.gguf"
    manifest = export.export_adapter(trained, base, target, prompt=TEMPLATE, parents=("m",))
    export.export_merged(trained, base, weights, whole)
    assert read_manifest(target) == manifest
    assert (manifest.base_sha256, manifest.prompt, manifest.parents) == (base.sha256, TEMPLATE, ("m",))
    made, before, after = by_name(target), by_name(weights), by_name(whole)
    peft = adapter.load_adapter(base, trained).float().merge_and_unload().state_dict()
    assert len(made) == 2 * 7 * tiny.LAYERS
    for key in (k.removesuffix(".lora_a") for k in made if k.endswith(".lora_a")):
        layer, name = key.split(".")[1:3]
        expected = peft[f"model.layers.{layer}.{MODULES[name]}.weight"].numpy()
        if name in ("attn_q", "attn_k"):
            expected = export.interleaved(expected, tiny.HEADS if name == "attn_q" else tiny.SHARED)
        formula = before[key] + QUICK.alpha / QUICK.rank * made[f"{key}.lora_b"] @ made[f"{key}.lora_a"]
        np.testing.assert_allclose(formula, expected, atol=0.01 * np.abs(expected).max())
        np.testing.assert_allclose(after[key], formula, atol=1.1 / 127 * np.abs(formula).max())
    assert np.array_equal(before["token_embd.weight"], after["token_embd.weight"])


def greedy(base: Base, folder: Path, prompt: str, most: int) -> str:
    """What PyTorch generates, taking the likeliest token each time."""
    tokenizer, model = base.tokenizer(), adapter.load_adapter(base, folder).float()
    ids = torch.tensor([tokenizer.encode(prompt)])
    with torch.no_grad():
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False)[
            0, ids.shape[1] :
        ]
    return str(tokenizer.decode(made, skip_special_tokens=True))


async def served(config: EngineConfig, request: Request) -> str:
    backend = LlamaCppBackend(config)
    await backend.start()
    try:
        return "".join([t.token for d in [x async for x in backend.generate(request)] for t in d.logprobs])
    finally:
        await backend.close()


@pytest.mark.engine
async def test_the_engine_serves_what_was_trained(base: Base, weights: Path, trained: Path, tmp_path: Path) -> None:
    """The adapter, asked as its manifest says, gives as served PyTorch's greedy answer, and the base another."""
    target = tmp_path / "adapter.gguf"
    export.export_adapter(trained, base, target, prompt=TEMPLATE)
    request = ask("Rome", adapter="weather")
    config = EngineConfig(weights, context=256, slots=1, threads=1, batch_threads=1, adapters={"weather": target})
    prompt = TEMPLATE.pruned(request)
    assert prompt is not None
    expected = greedy(base, trained, prompt, 24)
    assert await served(config, request) == expected
    assert await served(config, ask("Rome")) != expected


def test_preference_tuning_moves_towards_the_right_answer(base: Base, trained: Path, tmp_path: Path) -> None:
    """After tuning on pairs, every right answer has gained on its wrong one; without pairs, nothing can be learned."""
    pairs = [
        Pair(right, replace(right, completion=right.completion.replace(right.episode, "Bergen")))
        for right in examples()
    ]
    result = prefer(base, trained, pairs, tmp_path, PreferConfig(epochs=4, learning_rate=3e-3))
    assert result.loss < math.log(2)
    assert result.gained == 1.0
    assert (tmp_path / "adapter_model.safetensors").exists()
    with pytest.raises(TrainError, match="no pairs"):
        prefer(base, trained, (), tmp_path)


def test_a_full_disk_is_a_clear_error(base: Base, tmp_path: Path) -> None:
    """A checkpoint that cannot be written ends training with what to do."""
    (tmp_path / "checkpoint.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(TrainError, match="No space left"):
        train.train(base, examples(2), examples(), tmp_path, replace(QUICK, checkpoint_s=0))


def test_a_curve_without_points_is_a_picture_too(tmp_path: Path) -> None:
    """Nothing, one point and equal values are drawn without dividing by nothing."""
    for curve in ((), (Point(1, 10, 1.0, 2.0, 2.0),), (Point(1, 10, 1.0, 2.0, None), Point(2, 20, 2.0, 2.0, None))):
        draw(curve, tmp_path / "curve.svg")
        ElementTree.parse(tmp_path / "curve.svg")
