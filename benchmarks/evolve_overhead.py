"""What `cofuse evolve` costs over its bare training and evaluation steps.

    python benchmarks/evolve_overhead.py --tasks DIR [--seeds 2] [--rounds 3] [--steps 40] [--workers 2] [--times 2]

A reduced text study (MiniLM, four contributors, probes on three unseen tasks, several seeds as in examples/text.yaml:
while one seed's round is fused, the workers train for another) against a bare PyTorch loop that does the same: the
same batches in the same order, AdamW, schedule, clipping and autocast; the same forward passes for features, and the
same logistic regressions. The loop gets its batches ready made and has no Trainer, tokenizer, store, journal, screen,
fuse or waiting of one piece of work for another: as many processes as the study has workers, one thread each, the
pieces dealt out to them evenly by cost. Start-up and imports count on both sides; the report of the run does not.
Both sides in turn, the best of several times each. Preparing the batches is not timed. Two ratios: of wall time,
which needs a quiet machine, and of processor seconds, which other load disturbs less but which leave out waiting.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SEEN = ["sst2", "ag_news", "esnli", "sst5"]
UNSEEN = ["rotten_tomatoes", "subj", "trec_coarse"]
EVOLVE = """
import sys
from pathlib import Path
if __name__ == "__main__":
    from cofuse import address
    from cofuse.evolve.run import evolve
    from cofuse.evolve.study import read_study
    opened = read_study(Path(sys.argv[1]))
    evolve(opened, Path(sys.argv[2]), address.open(opened.study.base), workers=int(sys.argv[3]))
"""


def write_study(path: Path, tasks: Path, seeds: int, rounds: int, steps: int) -> None:
    import yaml

    study = {
        "name": "overhead",
        "base": "hf:sentence-transformers/all-MiniLM-L6-v2",
        "tasks": str(tasks.absolute()),
        "seeds": list(range(1, seeds + 1)),
        "seen": SEEN,
        "unseen": UNSEEN,
        "rounds": rounds,
        "examples": 16 * steps,
        "fresh": True,
        "finetune": {
            "steps": steps,
            "batch_size": 16,
            "learning_rate": 1.5e-4,
            "head_learning_rate": 3e-4,
            "head": "probe",
            "freeze": ["embeddings.*"],
            "warmup": 0.1,
            "dropout": 0.0,
            "max_length": 32,
        },
        "evaluate_unseen": {
            "probe": {
                "examples": 100,
                "draws": 3,
                "test": 300,
                "probing": {"max_length": 48, "standardize": True, "c": 0.01},
            }
        },
    }
    path.write_text(yaml.safe_dump(study, sort_keys=False))


# Preparing: the study is run once with workers that write down what they do


def prepare(study: Path, scratch: Path, processes: int) -> list[Path]:
    """The work of a study as files of ready batches, one for each process; and its model, in `scratch`/model."""
    import threading
    import warnings

    import torch

    from cofuse import address
    from cofuse.evolve import run
    from cofuse.evolve.study import read_study
    from cofuse.tasks import finetune

    jobs: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Watched(finetune.Collator):
        seen: list[dict[str, Any]] = []  # noqa: RUF012 - emptied before each piece of work

        def __call__(self, items: Any) -> Any:
            self.seen.append(super().__call__(items))
            return self.seen[-1]

    class Watching:
        def __init__(self, count: int, threads: int) -> None:
            torch.set_num_threads(threads)

        def start(self) -> None:
            pass

        def do(self, work: Any) -> dict[str, Any]:
            with lock, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                Watched.seen.clear()
                result = work()
                jobs.append(job_of(work, list(Watched.seen)))
                return result

        def kill(self) -> None:
            pass

        def __enter__(self) -> Watching:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    run.Workers, finetune.Collator = Watching, Watched  # type: ignore[misc, assignment]
    opened = read_study(study)
    assert isinstance(opened.study.base, str)
    base = address.open(opened.study.base)
    base.save(scratch / "model")
    run.evolve(opened, scratch / "prepared", base, workers=1)
    piles: list[list[dict[str, Any]]] = [[] for _ in range(processes)]
    for job in sorted(jobs, key=cost, reverse=True):
        min(piles, key=lambda pile: sum(map(cost, pile))).append(job)
    files = []
    for i, pile in enumerate(piles):
        files.append(scratch / f"jobs-{i}.pt")
        torch.save(pile, files[-1])
    return files


def cost(job: dict[str, Any]) -> float:
    """Tokens through the body; a step goes backward too."""

    def tokens(batches: list[dict[str, Any]]) -> int:
        return sum(batch["input_ids"].numel() for batch in batches)

    return tokens(job["features"]) + tokens(job["tested"]) + 3.0 * tokens(job["steps"])


def job_of(work: Any, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """A piece of work with everything made ready; the same draws as in `work` and `protocols`."""
    import numpy as np

    from cofuse.checkpoint import Checkpoint
    from cofuse.evolve.work import _CONTRIBUTORS, Contribute, _opened
    from cofuse.measure.evaluation.protocols import DRAWS
    from cofuse.tasks import draw, draw_rows

    body: Checkpoint = _opened(work.store, work.base if isinstance(work, Contribute) else work.tree)

    def ready(examples: Any, max_length: int) -> tuple[list[dict[str, Any]], Any]:
        """Batches of 64 of like length, as features go through the body; and which rows they hold."""
        encoded = work.task.what.encode(examples, body, max_length)
        order = np.argsort(-encoded.lengths, kind="stable")
        pieces = [order[i : i + 64] for i in range(0, len(order), 64)]
        return [work.task.what.collate([encoded.rows[r] for r in rows]) for rows in pieces], order

    train = work.task.examples("train")
    settings = work.settings
    if isinstance(work, Contribute):
        mine = draw(train, work.examples, (_CONTRIBUTORS, *work.sample))
        features, order = ready(mine, settings.max_length)
        fits = [(np.arange(len(mine)), mine.labels)]
        return {
            "features": features,
            "order": order,
            "fits": fits,
            "c": 0.02,
            "tested": [],
            "tested_order": None,
            "steps": steps,
            "settings": settings.model_dump(mode="json"),
            "outputs": work.task.outputs,
        }
    drawn = [draw_rows(train, settings.examples, [DRAWS, work.seed, d]) for d in range(settings.draws)]
    rows = np.unique(np.concatenate(drawn))
    features, order = ready(train.take(rows), settings.probing.max_length)
    tested, tested_order = ready(work.task.examples("test").first(settings.test), settings.probing.max_length)
    return {
        "features": features,
        "order": order,
        "fits": [(np.searchsorted(rows, wanted), train.labels[wanted]) for wanted in drawn],
        "c": settings.probing.c,
        "tested": tested,
        "tested_order": tested_order,
        "steps": [],
        "settings": {},
        "outputs": work.task.outputs,
    }


# The bare loop, in a process of its own


def bare(folder: str, file: str) -> None:
    import warnings

    warnings.filterwarnings("ignore")
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression
    from torch.nn.functional import cross_entropy
    from transformers import AutoModel, get_scheduler

    torch.set_num_threads(1)
    bf16 = bool(torch.cpu._is_avx512_bf16_supported())
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]

    def pooled(batch: dict[str, Any]) -> Any:
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].to(hidden.dtype).unsqueeze(-1)
        return (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)

    @torch.inference_mode()
    def features(batches: list[dict[str, Any]], order: Any) -> Any:
        model.eval()
        with autocast:
            vectors = np.concatenate([pooled(batch).float().numpy() for batch in batches])
        out = np.empty_like(vectors)
        out[order] = vectors
        return out

    for job in torch.load(file, weights_only=False):
        model.load_state_dict(start)
        vectors = features(job["features"], job["order"])
        tested = features(job["tested"], job["tested_order"]) if job["tested"] else None
        for rows, labels in job["fits"]:
            mine = vectors[rows]
            mean, deviation = mine.mean(0), mine.std(0)
            deviation = np.where(deviation > 0, deviation, 1)  # MiniLM has features that never change
            fitted = LogisticRegression(C=job["c"], max_iter=1000).fit((mine - mean) / deviation, labels)
            if tested is not None:
                fitted.predict((tested - mean) / deviation)
        if not job["steps"]:
            continue
        said = job["settings"]
        head = torch.nn.Linear(vectors.shape[1], job["outputs"])
        for dropout in dropouts:
            dropout.p = said["dropout"]
        model.train()
        groups: dict[tuple[bool, bool], list[Any]] = {}
        for name, parameter in [*model.named_parameters(), *head.named_parameters(prefix="head")]:
            parameter.grad = None
            parameter.requires_grad_(not name.startswith("embeddings."))
            if parameter.requires_grad:
                groups.setdefault((name.startswith("head."), parameter.dim() > 1), []).append(parameter)
        parameters = [p for group in groups.values() for p in group]
        optimizer = torch.optim.AdamW(
            [
                {
                    "params": group,
                    "lr": said["head_learning_rate" if of_head else "learning_rate"],
                    "weight_decay": said["weight_decay"] if decays else 0.0,
                }
                for (of_head, decays), group in groups.items()
            ],
            fused=True,
        )
        count = said["steps"]
        schedule = get_scheduler(said["schedule"], optimizer, round(said["warmup"] * count), count)
        for batch in job["steps"][:count]:
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            with autocast:
                logits = head(pooled(inputs))
                loss = cross_entropy(logits.float(), batch["labels"])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def processor() -> float:
    """Processor seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(orders: list[list[str]]) -> tuple[float, float]:
    """Seconds until all of several processes have ended well; and their processor seconds."""
    began, used = time.monotonic(), processor()
    running = [subprocess.Popen(order, env={**os.environ, "OMP_NUM_THREADS": "1"}) for order in orders]
    ended = [process.wait() for process in running]
    if any(ended):
        sys.exit("a process failed")
    return time.monotonic() - began, processor() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, default=os.environ.get("COFUSE_TASKS"), help="COFUSE_TASKS by default")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--bare", nargs=2, help=argparse.SUPPRESS)  # one process of the bare loop
    given = parser.parse_args()
    if given.bare:
        bare(*given.bare)
        return
    if given.tasks is None:
        parser.error("say where the tasks are: --tasks DIR, or COFUSE_TASKS")
    with tempfile.TemporaryDirectory() as scratch:
        study, script = Path(scratch) / "study.yaml", Path(scratch) / "evolve.py"
        write_study(study, Path(given.tasks), given.seeds, given.rounds, given.steps)
        script.write_text(EVOLVE)
        files = prepare(study, Path(scratch), given.workers)
        print(f"{'':>6} {'evolve':>9} {'bare':>9}   processor seconds")
        evolves: list[tuple[float, float]] = []
        bares: list[tuple[float, float]] = []
        for number in range(given.times):
            run = [sys.executable, str(script), str(study), str(Path(scratch) / f"run-{number}"), str(given.workers)]
            evolves.append(timed([run]))
            model = str(Path(scratch) / "model")
            bares.append(timed([[sys.executable, __file__, "--bare", model, str(file)] for file in files]))
            (wall, used), (bare_wall, bare_used) = evolves[-1], bares[-1]
            print(f"{number + 1:>6} {wall:7.1f} s {bare_wall:7.1f} s   {used:.1f} and {bare_used:.1f}", flush=True)
        for what, i in (("wall time", 0), ("processor seconds", 1)):
            ours, theirs = (min(side[i] for side in sides) for sides in (evolves, bares))
            print(f"{what}: {ours:.1f} against {theirs:.1f}, overhead {100 * (ours / theirs - 1):.1f} %")


if __name__ == "__main__":
    main()
