"""Questions over documents, and a predictor that is asked each prompt once (see `compress.py`)."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallfirst.compress.base import Compressed, Count
from smallfirst.types import Backend, Request, Sampling

ASK = "Answer the question from the documents. Give only the answer, in a few words."
ANSWER_TOKENS = 24
PASSAGES = 10
Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its acceptable answers, and documents of (title, text)."""

    id: str
    text: str
    answers: tuple[str, ...]
    documents: tuple[tuple[str, str], ...]

    @property
    def context(self) -> str:
        return "\n\n".join(f"{title}\n{text}" for title, text in self.documents)

    def right(self, said: str) -> bool:
        """Whether `said` holds one of the answers."""
        if self._decides:
            return _plain(said).split(" ")[0] == _plain(self.answers[0])
        return any(f" {_plain(a)} " in f" {_plain(said)} " for a in self.answers)

    def holds(self, text: str) -> bool:
        """Whether an answer stands in `text`; never for questions of yes and no."""
        return not self._decides and self.right(text)

    @property
    def _decides(self) -> bool:
        return _plain(self.answers[0]) in ("yes", "no")


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def hotpot(folder: Path) -> list[Question]:
    """HotpotQA: the two paragraphs that answer among up to eight others, in an order drawn by number."""
    given = json.loads((folder / "hotpot100/hotpot_dev_distractor_100.json").read_text())
    found = []
    for n, each in enumerate(given):
        documents = [(each["title_a"], each["para_a"]), (each["title_b"], each["para_b"])]
        documents += [(title, sentences) for title, sentences, _ in each["distractors"]]
        random.Random(n).shuffle(documents)
        texts = tuple((title, " ".join(s.strip() for s in sentences)) for title, sentences in documents)
        found.append(Question(f"hotpot-{n}", each["question"], (each["answer"],), texts))
    return found


def lost(folder: Path) -> list[Question]:
    """Lost in the Middle: the passage that answers among nine of other questions, in an order drawn by number."""
    with gzip.open(folder / "lost_in_middle/nq-open-oracle.jsonl.gz", "rt") as lines:
        given = [json.loads(line) for line in lines]
    found = []
    for n, each in enumerate(given):
        chance = random.Random(n)
        others = (given[m] for m in chance.sample(range(len(given)), PASSAGES) if m != n)
        documents = [(e["ctxs"][0]["title"], e["ctxs"][0]["text"]) for e in (each, *others)][:PASSAGES]
        chance.shuffle(documents)
        found.append(Question(f"lost-{n}", each["question"], tuple(each["answers"]), tuple(documents)))
    return found[:: max(len(found) // 200, 1)]


SETS: dict[str, Callable[[Path], list[Question]]] = {"hotpot": hotpot, "lost": lost}


def chosen(questions: Sequence[Question], split: str, count: int) -> list[Question]:
    """The first `count` of the half that `split` names."""
    return list(questions[split == "test" :: 2])[:count]


def prompt(question: str, context: str) -> str:
    """What the predictor is asked."""
    return f"{ASK}\n\n{context}\n\nQuestion: {question}\nAnswer:"


class Predictor:
    """A backend that is asked each prompt once; its answers are kept in `work`."""

    def __init__(self, backend: Backend, model: str, work: Path) -> None:
        self.backend = backend
        self._file = work / f"answers-{model}.jsonl"
        work.mkdir(parents=True, exist_ok=True)
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._kept = {row["key"]: row for row in map(json.loads, lines)}

    async def ask(self, text: str, tokens: int = ANSWER_TOKENS) -> Answer:
        """The answer to `text` at temperature 0: said, input and output tokens, busy seconds."""
        key = hashlib.sha256(f"{tokens} {text}".encode()).hexdigest()[:20]
        if key not in self._kept:
            row = {"key": key, **await self._asked(text, tokens)}
            self._kept[key] = row
            with self._file.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return self._kept[key]

    async def _asked(self, text: str, tokens: int) -> Answer:
        message = {"role": "user", "content": text}
        sampling = Sampling(temperature=0.0, max_tokens=tokens)
        request = Request("chat", {}, self.backend.name, (message,), sampling=sampling, timeout_s=600)
        said, usage, begin = "", None, time.perf_counter()
        async for delta in self.backend.generate(request):
            said += delta.text
            usage = delta.usage or usage
        assert usage is not None
        return {
            "said": said,
            "input": usage.input_tokens,
            "output": usage.output_tokens,
            "busy": usage.busy_seconds or time.perf_counter() - begin,
        }


def counter(weights: Path) -> Count:
    """Counts tokens as the model in the GGUF file `weights` does."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    return lambda text: len(tokenizer.encode(text))


class LLMLingua:
    """The published compressor in an interpreter of its own (`llmlingua_worker.py`), each text compressed once."""

    name = "llmlingua"

    def __init__(self, python: str, weights: Path, work: Path) -> None:
        self._command = [python, str(Path(__file__).with_name("llmlingua_worker.py")), str(weights), str(work / "hf")]
        self._file = work / "llmlingua.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._kept = {row["id"]: row for row in map(json.loads, lines)}
        self._worker: subprocess.Popen[str] | None = None

    async def compress(self, context: str, question: str, budget: int, *, seed: int = 0) -> Compressed:
        del seed
        key = hashlib.sha256(f"{budget} {question} {context}".encode()).hexdigest()[:20]
        if key not in self._kept:
            row = self._asked({"id": key, "documents": context.split("\n\n"), "question": question, "budget": budget})
            self._kept[key] = row
            with self._file.open("a") as file:
                file.write(json.dumps(row) + "\n")
        row = self._kept[key]
        return Compressed(row["text"], row["tokens"], budget, seconds=row["seconds"])

    def _asked(self, job: dict[str, Any]) -> Answer:
        if self._worker is None:
            pipe = subprocess.PIPE
            self._worker = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
        assert self._worker.stdin
        assert self._worker.stdout
        self._worker.stdin.write(json.dumps(job) + "\n")
        self._worker.stdin.flush()
        row: Answer = json.loads(self._worker.stdout.readline())
        return row

    def close(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
