"""Speed of the Fisher on MiniLM beside what it could be: examples a second, all ways in one run.

    python benchmarks/fisher_speed.py [--batch 32] [--tokens 64] [--threads 2] [--times 5] [--classes 2] [--out FILE.json]

All-MiniLM-L6-v2 (the extra `minilm`) with a linear head, on random tokens, all examples of full length and without a
mask, because transformers' masks do not go through vmap. Ways:

    forward+backward   of the batch's loss, every parameter's gradient: what a step of training does before the optimizer
    empirical          `measure.fisher`'s collector, the data's labels; expected: all labels, exactly
    loop               one example at a time, forward, backward, grad^2
    vmap               torch.func: vmap(grad) over the batch in chunks of 8, squares summed

They take turns, and the best of several counts, because other work on the machine can only add; the loop and vmap, which
take long, take fewer turns. Their results are compared: each tensor's largest relative difference in norm.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.func import functional_call, grad, vmap

from cofuse import address
from cofuse.measure.statistics.likelihood import cotangents
from cofuse.measure.statistics.squares import Collector
from cofuse.measure.subject import Subject, module_subject
from cofuse.tasks import Examples
from cofuse.tasks.model import Head, load_body, pooled

Tensors = dict[str, torch.Tensor]


class Classifier(torch.nn.Module):
    """MiniLM, the mean over tokens, and one linear layer."""

    def __init__(self, body: torch.nn.Module, classes: int) -> None:
        super().__init__()
        self.body, self.head = body, Head(384, classes, 0.0, 0)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(pooled(self.body, {"input_ids": input_ids}, "mean"))


def losses(subject: Subject, inputs: Tensors, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(subject.forward(inputs), labels, reduction="sum")


def plain(subject: Subject, inputs: Tensors, labels: torch.Tensor) -> Tensors:
    subject.module.zero_grad()
    losses(subject, inputs, labels).backward()
    return {}


def loop(subject: Subject, inputs: Tensors, labels: torch.Tensor) -> Tensors:
    sums = {name: torch.zeros_like(p) for name, p in subject.parameters().items()}
    for i in range(len(labels)):
        subject.module.zero_grad()
        losses(subject, {k: v[i : i + 1] for k, v in inputs.items()}, labels[i : i + 1]).backward()
        for name, parameter in subject.parameters().items():
            if parameter.grad is not None:
                sums[name].addcmul_(parameter.grad, parameter.grad)
    return sums


def mapped(subject: Subject, inputs: Tensors, labels: torch.Tensor) -> Tensors:
    parameters = {name: p.detach() for name, p in subject.parameters().items()}
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def loss(parameters: Tensors, inputs: Tensors, label: torch.Tensor) -> torch.Tensor:
        logits = functional_call(subject.module, parameters, (), {k: v.unsqueeze(0) for k, v in inputs.items()})
        return torch.nn.functional.cross_entropy(logits, label.unsqueeze(0))

    for start in range(0, len(labels), 8):
        part = slice(start, start + 8)
        found = vmap(grad(loss), (None, 0, 0))(parameters, {k: v[part] for k, v in inputs.items()}, labels[part])
        for name, each in found.items():
            sums[name].add_(each.square().sum(0))
    return sums


def collected(kind: str, squares: Collector, examples: Examples, batch: int) -> Tensors:
    subject = squares.subject
    for one in subject.batches(examples, batch):
        squares.add(one, partial(cotangents, kind, "classes", seed=0))  # type: ignore[arg-type]
    return {}


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def apart(found: Tensors, right: Tensors) -> float:
    largest = max(float(t.norm()) for t in right.values())
    return max(float((found[n] - t).norm()) / (float(t.norm()) + 1e-5 * largest) for n, t in right.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("batch", 32), ("tokens", 64), ("threads", 2), ("times", 5), ("classes", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    body = load_body(address.open("hf:sentence-transformers/all-MiniLM-L6-v2")).eval()
    subject = module_subject(Classifier(body, asked.classes))
    random = np.random.default_rng(0)
    ids = random.integers(1000, 30000, (asked.batch, asked.tokens))
    examples = Examples({"input_ids": ids}, random.integers(0, asked.classes, asked.batch))
    (batch,) = subject.batches(examples, asked.batch)
    whole = (subject, batch.inputs, batch.labels)
    with Collector(subject) as squares:
        collected("empirical", squares, examples, asked.batch)  # finds out what the rules cover
        ours = squares.means()
    right = loop(*whole)
    found: dict[str, list[float]] = {}
    rows: Sequence[tuple[str, int, Callable[[], object]]] = (
        ("forward+backward", asked.times, partial(plain, *whole)),
        ("loop", max(1, asked.times // 3), partial(loop, *whole)),
        ("vmap", max(1, asked.times // 3), partial(mapped, *whole)),
    )
    differences = {
        "vmap": apart(mapped(*whole), right),
        "empirical": apart(ours, {n: t / asked.batch for n, t in right.items()}),
    }
    for turn in range(asked.times):
        for name, times, work in rows:
            if turn < times:
                found.setdefault(name, []).append(seconds(work))
        with squares:
            for kind in ("empirical", "expected"):
                work = partial(collected, kind, squares, examples, asked.batch)
                found.setdefault(kind, []).append(seconds(work))
    best = {name: min(all_) for name, all_ in found.items()}
    print(f"{asked.batch} x {asked.tokens} tokens, {asked.classes} classes, {asked.threads} threads")
    print(f"{'':18} {'examples/s':>10} {'x fwd+bwd':>10} {'x loop speed':>12}  apart from the loop")
    for name, took in sorted(best.items(), key=lambda item: item[1]):
        speed, times, gain = asked.batch / took, took / best["forward+backward"], best["loop"] / took
        print(f"{name:18} {speed:10.1f} {times:10.2f} {gain:12.2f}  {differences.get(name, '')}")
    if asked.out is not None:
        asked.out.write_text(
            json.dumps({"settings": {k: v for k, v in vars(asked).items() if k != "out"}, "seconds": found})
        )


if __name__ == "__main__":
    main()
