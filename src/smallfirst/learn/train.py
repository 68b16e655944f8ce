"""Training a specialist: an adapter of a small model, from examples of one task (mechanisms, section 4, S5).

The stage hands over a folder: PEFT's adapter (`adapter_model.safetensors`, `adapter_config.json`), `curve.svg`, and
while it runs `checkpoint.pt`, from which a killed training continues. `export` makes the engine's file out of it.

On a CPU the time is the budget, so the learning rate follows the share of the plan that is done, in tokens or in
minutes, whichever is further: training that ends early by the clock has cooled down all the same.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from smallfirst.errors import TrainError
from smallfirst.extra import need
from smallfirst.learn.adapter import logits_of, new_adapter
from smallfirst.learn.base import Base
from smallfirst.learn.curve import Point, draw
from smallfirst.learn.packing import (
    Batch,
    Encoded,
    Example,
    Group,
    batches,
    encode,
    steps,
    to_tensors,
    together,
    tokens_of,
)

_CHECKPOINT = "checkpoint.pt"
_LARGEST_GRADIENT = 1.0
_BETAS = (0.9, 0.99)
_SPEED_SPAN = 10  # steps over which tokens/s are shown
_PART_TOKENS = 128
"""On a CPU a step's parts of at least so many tokens are computed side by side, each on cores of its own: that takes
less time than all cores on one small product after another."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train.

    method "dora" adds a learned magnitude to each row, "qlora" keeps the frozen weights in 4 bits (needs a GPU and
    bitsandbytes). The learning rate rises to its largest value over the first `warmup` of the plan, and falls to 0 at
    its end. `longest` leaves out examples of more tokens. A step takes at most `step_tokens` tokens, but for examples
    that are longer than its part for a core. Training ends after `epochs`, after `max_minutes`, in which evaluations on
    the way count, or when `patience` of the `evaluations`, which are spread over the plan, brought no better adapter;
    without a metric each takes so many `validation_tokens`. `threads`: cores to use, None: as many as torch would.
    """

    method: Literal["lora", "dora", "qlora"] = "lora"
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 2e-3
    warmup: float = 0.05
    epochs: float = 3.0
    max_minutes: float | None = None
    step_tokens: int = 512
    longest: int = 2048
    evaluations: int = 3
    validation_tokens: int = 8192
    patience: int = 3
    checkpoint_s: float = 60.0
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "rank",
            "alpha",
            "learning_rate",
            "epochs",
            "warmup",
            "step_tokens",
            "longest",
        ):
            if getattr(self, name) <= 0:
                raise TrainError(f"{name} must be greater than 0, not {getattr(self, name)!r}.")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training is. `done` is the share of the plan in [0, 1], `score` the last evaluation's."""

    step: int
    done: float
    loss: float
    tokens: int
    tokens_per_s: float
    seconds_left: float
    score: float | None


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out: the adapter's folder and how it was reached. `seconds` are those of steps and evaluations,
    `score` is the best evaluation's (see `train`); `left_out` counts the examples that were longer than `longest`."""

    folder: Path
    steps: int
    tokens: int
    seconds: float
    score: float
    ended: Literal["epochs", "minutes", "patience"]
    curve: tuple[Point, ...]
    left_out: int = 0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


Metric = Callable[[Path], float]
"""Folder of a PEFT adapter -> what is to be large, e.g. the share of held-out calls answered right as served."""


def train(
    base: Base,
    examples: Sequence[Example],
    validation: Sequence[Example],
    folder: Path,
    config: TrainConfig = TrainConfig(),
    *,
    metric: Metric | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Trained:
    """Trains an adapter into `folder`; continues there if it was broken off with the same configuration and material.

    The adapter kept is the one with the best evaluation: `metric`, or without one minus the mean loss per token of
    `validation`. Raises TrainError (nothing to train on, loss no longer finite, disk full, a checkpoint of something
    else, a method that does not run here) and ConfigError (the `learn` extra is not installed).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _Training(base, examples, validation, folder, config, metric).run(report or (lambda _progress: None))
    except OSError as error:
        raise TrainError(
            f"Training cannot write to {folder}: {error.strerror or error}.",
            hint="Make room and run it again: it continues from its last checkpoint.",
        ) from error


@dataclass(slots=True)
class _State:
    """All that a checkpoint holds besides tensors."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    misses: int = 0  # evaluations in a row that were no better
    evaluated: int = 0
    curve: list[Point] = field(default_factory=list)


class _Training:
    def __init__(
        self,
        base: Base,
        examples: Sequence[Example],
        validation: Sequence[Example],
        folder: Path,
        config: TrainConfig,
        metric: Metric | None,
    ) -> None:
        self._torch = need("torch")
        self._folder, self._config, self._metric = folder, config, metric
        self._torch.manual_seed(config.seed)
        tokenizer = base.tokenizer()
        encoded = encode(examples, tokenizer, config.longest)
        self._left_out = len(examples) - len(encoded)
        self._groups = together(encoded, config.longest)
        self._planned = config.epochs * sum(map(tokens_of, self._groups))
        if not validation and metric is None:
            raise TrainError("There is nothing to evaluate on.", hint="Give validation examples or a metric.")
        self._validation = self._sample(encode(validation, tokenizer, config.longest)) if validation else []
        self._plan = _fingerprint(base, examples, config)
        self._model = new_adapter(base, config.method, config.rank, config.alpha)
        self._logits = logits_of(self._model)
        cores, parts = config.threads or self._torch.get_num_threads(), max(1, config.step_tokens // _PART_TOKENS)
        self._abreast = 1 if self._torch.cuda.is_available() else min(cores, parts)
        threads = cores // self._abreast
        self._pool = ThreadPoolExecutor(self._abreast, "train", self._torch.set_num_threads, (threads,))
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = self._torch.optim.AdamW(
            self._parameters, lr=config.learning_rate, betas=_BETAS, weight_decay=0.0, fused=True
        )
        self._state = _State()

    def run(self, report: Callable[[Progress], None]) -> Trained:
        threads = self._torch.get_num_threads()
        try:
            with self._pool:
                self._restore()
                return self._train(report)
        finally:
            self._torch.set_num_threads(threads)

    def _train(self, report: Callable[[Progress], None]) -> Trained:
        config, state = self._config, self._state
        saved = time.monotonic()
        recent: list[tuple[int, float]] = []  # tokens and seconds of the last steps
        ended: Literal["epochs", "minutes", "patience"] = "epochs"
        for parts in self._steps():
            done = self._done()
            if done >= 1:
                ended = "epochs" if state.tokens >= self._planned else "minutes"
                break
            begun = time.monotonic()
            loss, tokens = self._step(parts, done)
            spent = time.monotonic() - begun
            state.step, state.tokens, state.seconds = state.step + 1, state.tokens + tokens, state.seconds + spent
            state.curve.append(Point(state.step, state.tokens, state.seconds, loss, None))
            recent = [*recent[1 - _SPEED_SPAN :], (tokens, spent)]
            if self._done() * config.evaluations >= state.evaluated + 1 and not self._better():
                ended = "patience"
                break
            if time.monotonic() - saved > config.checkpoint_s:
                self._save()
                saved = time.monotonic()
            report(self._progress(loss, recent))
        if not state.curve or state.curve[-1].score is None:
            self._better()
        draw(state.curve, self._folder / "curve.svg")
        shutil.rmtree(self._folder / "candidate", ignore_errors=True)
        (self._folder / _CHECKPOINT).unlink(missing_ok=True)
        return Trained(
            folder=self._folder,
            steps=state.step,
            tokens=state.tokens,
            seconds=state.seconds,
            score=state.best,
            ended=ended,
            curve=tuple(state.curve),
            left_out=self._left_out,
        )

    def _done(self) -> float:
        minutes = self._config.max_minutes
        return max(self._state.tokens / self._planned, self._state.seconds / (60 * minutes) if minutes else 0.0)

    def _steps(self) -> Iterator[list[list[Group]]]:
        """The steps from where training stands, without end, each in parts; what a step is follows from the seed, its
        number and how many parts are computed side by side."""
        made = 0
        for epoch in itertools.count():
            order = random.Random(f"{self._config.seed}/{epoch}")
            for step in steps(order, self._groups, self._config.step_tokens, self._abreast):
                if made >= self._state.step:
                    yield step
                made += 1

    def _step(self, parts: Sequence[Sequence[Group]], done: float) -> tuple[float, int]:
        """One step of the optimizer; returns the mean loss per target token, and the tokens."""
        config = self._config
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = config.learning_rate * min(1.0, (done + 1e-3) / config.warmup) * (1 - done)
        losses, weights, tokens, gradients = zip(*self._pool.map(self._gradients, parts), strict=True)
        weight = sum(weights)
        value = sum(losses) / weight
        if not math.isfinite(value):
            raise TrainError(f"The loss is {value} at step {self._state.step}.", hint="Lower the learning rate.")
        set_gradients(self._parameters, gradients, weight)
        self._torch.nn.utils.clip_grad_norm_(self._parameters, _LARGEST_GRADIENT)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return value, sum(tokens)

    def _gradients(self, groups: Sequence[Group]) -> tuple[float, float, int, Sequence[Any]]:
        """Of a step's part: the summed loss, the summed weights, the tokens, and the gradients of the loss."""
        batch = to_tensors(groups)
        loss = self._loss(batch)
        gradients = self._torch.autograd.grad(loss, self._parameters)
        return float(loss.detach()), float(batch.weights.sum()), batch.tokens, gradients

    def _loss(self, batch: Batch) -> Any:
        """Sum over target tokens of weight times cross-entropy."""
        logits = self._logits(batch).float()
        losses = self._torch.nn.functional.cross_entropy(logits, batch.targets.to(logits.device), reduction="none")
        return (losses * batch.weights.to(logits.device)).sum()

    def _better(self) -> bool:
        """Evaluates, keeps the adapter if it is the best so far; False when patience is at its end."""
        state, begun = self._state, time.monotonic()
        draft = self._folder / "candidate"
        self._model.save_pretrained(draft)
        score = self._metric(draft) if self._metric else -self._validation_loss()
        state.seconds += time.monotonic() - begun
        state.evaluated += 1
        if state.curve:
            state.curve[-1] = msgspec.structs.replace(state.curve[-1], score=score)
        state.misses = 0 if score > state.best else state.misses + 1
        if score > state.best:
            state.best = score
            for file in ("adapter_config.json", "adapter_model.safetensors"):
                (draft / file).replace(self._folder / file)
        self._save()
        return state.misses < self._config.patience

    def _sample(self, examples: Sequence[Encoded]) -> list[Group]:
        """As many of the examples, drawn by the seed, as an evaluation takes."""
        groups = together(examples, self._config.longest)
        random.Random(self._config.seed).shuffle(groups)
        return next(batches(groups, self._config.validation_tokens))

    def _validation_loss(self) -> float:
        found = list(self._pool.map(self._held_out, batches(self._validation, self._config.step_tokens)))
        return sum(loss for loss, _ in found) / sum(weight for _, weight in found)

    def _held_out(self, groups: Sequence[Group]) -> tuple[float, float]:
        """The summed loss and the summed weights."""
        with self._torch.no_grad():  # which holds in its own thread only
            batch = to_tensors(groups)
            return float(self._loss(batch)), float(batch.weights.sum())

    def _save(self) -> None:
        kept = {name: p.detach() for name, p in self._model.named_parameters() if p.requires_grad}
        state = {**asdict(self._state), "curve": msgspec.to_builtins(self._state.curve)}
        whole = io.BytesIO()  # torch's own writer does not say that a disk is full
        self._torch.save(
            {"plan": self._plan, "adapter": kept, "optimizer": self._optimizer.state_dict(), "state": state}, whole
        )
        draft = self._folder / f"{_CHECKPOINT}.tmp"
        draft.write_bytes(whole.getbuffer())
        draft.replace(self._folder / _CHECKPOINT)

    def _restore(self) -> None:
        path = self._folder / _CHECKPOINT
        if not path.exists():
            return
        kept = self._torch.load(path, weights_only=True)
        if kept["plan"] != self._plan:
            raise TrainError(
                f"{path} belongs to a training with another configuration or material.",
                hint="Train into another folder, or delete it.",
            )
        self._model.load_state_dict(kept["adapter"], strict=False)
        self._optimizer.load_state_dict(kept["optimizer"])
        state = kept["state"]
        self._state = _State(**{**state, "curve": msgspec.convert(state["curve"], list[Point])})

    def _progress(self, loss: float, recent: Sequence[tuple[int, float]]) -> Progress:
        state, done = self._state, min(1.0, self._done())
        scores = [p.score for p in state.curve if p.score is not None]
        return Progress(
            step=state.step,
            done=done,
            loss=loss,
            tokens=state.tokens,
            tokens_per_s=sum(tokens for tokens, _ in recent) / max(sum(seconds for _, seconds in recent), 1e-9),
            seconds_left=state.seconds * (1 - done) / done,
            score=scores[-1] if scores else None,
        )


def set_gradients(parameters: Sequence[Any], parts: Sequence[Sequence[Any]], weight: float) -> None:
    """Each parameter's gradient: the sum of those of a step's parts over `weight`, laid out as the parameter is,
    because the fused optimizer reads it so."""
    for parameter, *summands in zip(parameters, *parts, strict=True):
        parameter.grad = (sum(summands[1:], summands[0]) / weight).contiguous()


def _fingerprint(base: Base, examples: Sequence[Example], config: TrainConfig) -> str:
    """A hash of what a training is made from; how long it may take is not part of it."""
    plan = {**asdict(config), "max_minutes": None, "epochs": None, "threads": None, "checkpoint_s": None}
    material = [[e.id, e.prompt, e.completion, e.weight] for e in examples]
    return hashlib.sha256(msgspec.json.encode([base.sha256, plan, material])).hexdigest()
