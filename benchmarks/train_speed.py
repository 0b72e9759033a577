"""A masked-LM training step of lsp against Hugging Face's BertForMaskedLM, eager and compiled. Prints one JSON object.

    python benchmarks/train_speed.py --peer .peers/bin/python --vocabulary 30522             # docstrings as the text
    python benchmarks/train_speed.py --peer .peers/bin/python --data prepared --dropout 0.0  # what `lsp prepare` made

BERT of 4×256 (feed-forward 1,024), 32 rows of 128 tokens without padding, fp32, two threads, AdamW with clipping. All
start from the same weights and see the same batches, masks and learning rates. Dropout stands where lsp has it; the
peer's attention weights, which lsp does not drop, are not dropped there either: that lets PyTorch take its fast path.
Before the clock starts the losses of both must agree, and without dropout so must those of the first steps.

Each side lives in a process of its own (PyTorch in the environment of benchmarks/peers.txt) and has turns of a few
steps, one after the other, while the others wait on a pipe; the CPU time that they burn meanwhile is in the report.
A step is timed from host arrays to the loss on the host. All keep freed memory in one heap (lsp/allocator.py), which
makes PyTorch faster too; `--plain-malloc` times the peer as it is installed.
"""

import argparse
import json
import os
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDES = ("lsp", "eager", "compiled")
BATCHES, ROWS, LENGTH, MASK_RATE = 8, 32, 128, 0.15
LAYERS, WIDTH, HEADS, FEEDFORWARD, POSITIONS = 4, 256, 4, 1024, 512
BETAS, EPSILON, DECAY, CLIP = (0.9, 0.98), 1e-8, 0.01, 1.0
RATE = 1e-3  # the peak, reached after WARMUP of STEPS
STEPS, WARMUP = 1000, 0.06
FIRST = 4  # steps that compile and warm up
Side = tuple[Callable[[], float], Callable[[], float]]  # the loss of batch 0 without dropout; a step, giving its loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=".peers/bin/python", help="a Python with benchmarks/peers.txt")
    parser.add_argument("--data", type=Path, help="a folder that `lsp prepare` made, rows of 128; else docstrings")
    parser.add_argument("--vocabulary", type=int, default=8192, help="pieces of the docstrings' tokenizer")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--turn", type=int, default=3, help="steps a turn")
    parser.add_argument("--plain-malloc", action="store_true", help="the peer without lsp/allocator.py, as installed")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # in the processes that this one starts
    options = parser.parse_args()
    if options.side:
        return serve(options)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # inherited: XLA has as many threads as processors
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            options.data = docstrings(Path(folder), options.vocabulary)
        sides = {name: Worker(name, options, folder) for name in SIDES}  # lsp first: it writes what the others read
        try:
            report = measure(sides, options)
        finally:
            for side in sides.values():
                side.process.kill()
    print(json.dumps(report, indent=1))


def measure(sides: dict[str, "Worker"], options: argparse.Namespace) -> dict[str, Any]:
    losses = {name: side.ask("loss") for name, side in sides.items()}
    agree(losses, 1e-4, "before the first step")
    firsts = {name: [side.ask("step")["loss"] for _ in range(FIRST)] for name, side in sides.items()}
    if options.dropout == 0:
        for step in range(FIRST):
            agree({name: first[step] for name, first in firsts.items()}, 1e-3, f"at step {step}")
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    idle: dict[str, float] = {}
    for _ in range(options.rounds):
        for name, side in sides.items():
            idle[name] = idle.get(name, 0.0) + side.ask("idle")
            seconds[name] += [side.ask("step")["seconds"] for _ in range(options.turn)]
    best = {name: min(times) for name, times in seconds.items()}
    elapsed = sum(map(sum, seconds.values()))
    return {
        "ratio_of_bests": round(min(best["eager"], best["compiled"]) / best["lsp"], 3),
        "ratio_to_eager": round(best["eager"] / best["lsp"], 3),
        "ratio_to_compiled": round(best["compiled"] / best["lsp"], 3),
        "best_s": {name: round(time, 4) for name, time in best.items()},
        "median_s": {name: round(statistics.median(times), 4) for name, times in seconds.items()},
        "steps_each": options.rounds * options.turn,
        "vocabulary": sides["lsp"].ask("versions")["vocabulary"],
        "dropout": options.dropout,
        "plain_malloc": options.plain_malloc,
        "loss_at_start": losses,
        "first_losses": firsts,
        "cpu_seconds_while_waiting": {name: round(spent, 2) for name, spent in idle.items()} | {"of": round(elapsed)},
        "versions": {name: side.ask("versions") for name, side in sides.items()},
        "threads": 2,
        "cpu": next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
        ).stdout.strip(),
    }


def agree(losses: dict[str, float], tolerance: float, when: str) -> None:
    if max(losses.values()) - min(losses.values()) > tolerance:
        sys.exit(f"Not the same model: losses {losses} {when}.")


def docstrings(folder: Path, vocabulary: int) -> Path:
    """The documentation of this Python installation, prepared."""
    from lsp.data.docstrings import harvest

    text = folder / "docstrings.txt"
    text.write_text("\n\n".join(harvest().corpus), encoding="utf-8")
    command = [sys.executable, "-m", "lsp", "prepare", str(text), "--vocab-size", str(vocabulary)]
    subprocess.run([*command, "--seq-len", str(LENGTH), "--out", str(folder / "data")], check=True, stdout=sys.stderr)
    return folder / "data"


# --- one process a side ---------------------------------------------------------------------------------------------


class Worker:
    """A side in its own process, which answers each line it is sent with a line of JSON."""

    def __init__(self, name: str, options: argparse.Namespace, folder: str) -> None:
        python = sys.executable if name == "lsp" else options.peer
        arguments = ["--side", name, "--data", str(options.data), "--dropout", str(options.dropout)]
        arguments += ["--plain-malloc"] * options.plain_malloc
        self.process = subprocess.Popen(
            [python, __file__, *arguments], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ask("idle")  # answers when it is ready

    def ask(self, what: str) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def serve(options: argparse.Namespace) -> None:
    """Answers the questions on stdin until it ends. The working directory is the one that the sides share."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print
    (loss, step), versions = ours(options) if options.side == "lsp" else peers(options)
    before = spent()
    for question in sys.stdin:
        answer: Any = versions
        if question == "idle\n":
            answer = spent() - before
        elif question == "loss\n":
            answer = loss()
        elif question == "step\n":
            began = time.perf_counter()
            answer = {"loss": step(), "seconds": time.perf_counter() - began}
        print(json.dumps(answer), file=answers, flush=True)
        before = spent()


def spent() -> float:
    """CPU seconds of all threads of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def ours(options: argparse.Namespace) -> tuple[Side, dict[str, Any]]:
    from lsp.allocator import keep_freed_memory

    keep_freed_memory()  # as the command line does, before jax makes threads

    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from lsp import recipe
    from lsp.data.batches import pretraining
    from lsp.data.shards import Rows, Subset
    from lsp.data.tokenizer import PAD
    from lsp.model.config import ModelConfig
    from lsp.model.encoder import graphdef, initialise
    from lsp.train import optimizer
    from lsp.train.metrics import value
    from lsp.train.objectives import Objective, masked_lm
    from lsp.train.step import Signals, TrainState, make_train_step, make_update

    rows = Rows.open(options.data)
    full = Subset(rows, np.flatnonzero((rows.take(np.arange(len(rows))) != PAD).all(1)))
    dataset = pretraining(full, batch_size=ROWS, seed=0, mask_rate=MASK_RATE)
    batches = [{name: array for name, array in dataset[i].items() if name != "overflow"} for i in range(BATCHES)]
    for batch in batches:
        batch["segments"] = np.ones_like(batch["tokens"])  # every token sees its whole row, as the peer's do

    shape = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "feedforward": FEEDFORWARD, "max_length": POSITIONS}
    config = ModelConfig.from_recipe(recipe.Model(preset="bert", dropout=options.dropout, **shape), rows.vocab_size)
    train = recipe.Train(
        steps=STEPS, warmup=WARMUP, learning_rate=RATE, beta1=BETAS[0], beta2=BETAS[1], weight_decay=DECAY, clip=CLIP
    )
    tx, params, structure = optimizer.make(train), initialise(config, 0), graphdef(config)
    np.savez("weights.npz", **named_as_theirs(params))
    np.savez(
        "batches.npz",
        tokens=np.stack([batch["tokens"] for batch in batches]),
        labels=np.stack([labels(batch) for batch in batches]),
        rates=np.array([optimizer.schedule(train)((step + 1) / STEPS) for step in range(STEPS)]),
    )
    first = jax.jit(lambda params, batch: masked_lm(nnx.merge(structure, params), None, batch, None)[0])
    at_start = value(first(params, batches[0]))
    state, done = TrainState(jnp.int32(0), params, tx.init(params)), 0
    compiled = make_train_step(make_update(structure, Objective(masked_lm), tx))
    compiled = compiled.lower(state, None, batches[0], np.int32(0), Signals(0.5)).compile()

    def step() -> float:
        nonlocal state, done
        state, metrics = compiled(state, None, batches[done % BATCHES], np.int32(done), Signals((done + 1) / STEPS))
        done += 1
        return value(metrics["loss"])

    return (lambda: at_start, step), {"jax": jax.__version__, "vocabulary": rows.vocab_size}


def labels(batch: dict[str, Any]) -> Any:
    """What stood at each masked position, -100 (ignored) elsewhere: int64 [B, T]."""
    import numpy as np

    out = np.full((ROWS, LENGTH + 1), -100)
    used = batch["weights"] > 0
    np.put_along_axis(out, np.where(used, batch["slots"], LENGTH), batch["targets"], axis=1)
    return out[:, :LENGTH]


def named_as_theirs(params: Any) -> dict[str, Any]:
    """Our parameters under BertForMaskedLM's names. Its matrices are [out, in]; query, key and value stand apart."""
    import numpy as np

    out: dict[str, Any] = {}

    def linear(name: str, ours: Any) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = np.asarray(ours["kernel"]).T, ours["bias"]

    def norm(name: str, ours: Any) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = ours["scale"], ours["bias"]

    tables = {"word": "tokens", "position": "positions", "token_type": "types"}
    for theirs, ours in tables.items():
        out[f"bert.embeddings.{theirs}_embeddings.weight"] = params["embeddings"][ours]["table"]
    norm("bert.embeddings.LayerNorm", params["embeddings"]["norm"])
    for index in range(LAYERS):
        layer, name = params["layers"][index], f"bert.encoder.layer.{index}"
        qkv = {part: np.asarray(array) for part, array in layer["attention"]["qkv"].items()}
        qkv = {part: array.reshape(*array.shape[:-1], HEADS, 3, -1) for part, array in qkv.items()}
        for which, theirs in enumerate(("query", "key", "value")):
            each = {part: array[..., which, :].reshape(*array.shape[:-3], WIDTH) for part, array in qkv.items()}
            linear(f"{name}.attention.self.{theirs}", each)
        linear(f"{name}.attention.output.dense", layer["attention"]["out"])
        norm(f"{name}.attention.output.LayerNorm", layer["attention"]["norm"])
        linear(f"{name}.intermediate.dense", layer["feedforward"]["up"])
        linear(f"{name}.output.dense", layer["feedforward"]["down"])
        norm(f"{name}.output.LayerNorm", layer["feedforward"]["norm"])
    linear("cls.predictions.transform.dense", params["words"]["transform"])
    norm("cls.predictions.transform.LayerNorm", params["words"]["norm"])
    return out | {"cls.predictions.bias": params["words"]["bias"]}


def peers(options: argparse.Namespace) -> tuple[Side, dict[str, Any]]:
    if not options.plain_malloc:  # before torch makes threads; from its file, since lsp is not installed there
        runpy.run_path(str(Path(__file__).parents[1] / "src/lsp/allocator.py"))["keep_freed_memory"]()

    import numpy as np
    import torch
    import transformers

    torch.set_num_threads(2)
    torch.manual_seed(0)
    weights, given = np.load("weights.npz"), np.load("batches.npz")
    tokens, labels = (torch.from_numpy(given[name].astype(np.int64)) for name in ("tokens", "labels"))
    config = transformers.BertConfig(
        vocab_size=len(weights["cls.predictions.bias"]),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FEEDFORWARD,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.BertForMaskedLM(config)
    missing, unknown = model.load_state_dict({n: torch.from_numpy(weights[n]) for n in weights}, strict=False)
    # The projection is the embedding table, and the two biases are one.
    assert not unknown and set(missing) == {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}, missing
    model.eval()
    with torch.inference_mode():
        at_start = model(input_ids=tokens[0], labels=labels[0]).loss.item()
    model.train()
    run = torch.compile(model, dynamic=False) if options.side == "compiled" else model
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rates = given["rates"].tolist()
    tx, done = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON, fused=True), 0

    def step() -> float:
        nonlocal done
        for group in tx.param_groups:
            group["lr"] = rates[done]
        tx.zero_grad(set_to_none=True)
        loss = run(input_ids=tokens[done % BATCHES], labels=labels[done % BATCHES]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=True)
        tx.step()
        done += 1
        return loss.item()

    return (lambda: at_start, step), {"torch": torch.__version__, "transformers": transformers.__version__}


if __name__ == "__main__":
    main()
