"""Classifiers answering beside each other, in turns: lsp's runs and exports, PyTorch, ONNX Runtime and OpenVINO.

    .venv/bin/python benchmarks/serving.py --data-root DATA --whole RUN --small RUN [--small RUN]… \\
        --peer .peers/bin/python --out OUT [--only dev,1x16]

`--whole` is the float classifier that the small ones were made from; a small one may be an export of lsp's, which ONNX
Runtime answers with, and OpenVINO too where its operators are those of the standard. The peers
run `lsp export --format huggingface` of the whole: PyTorch in fp32, eager; ONNX Runtime in int8 (torch's exporter, the
transformer optimiser, `quantize_dynamic`); OpenVINO in int8 (NNCF, 300 texts of SST-2 to calibrate).
Every model has a process of its own that waits for its turn, and two threads. Cases: `dev`, the whole dev set of SST-2,
the peers 32 texts a batch padded to the longest, in the file's order and sorted by length, lsp as `lsp predict` has it;
and `BxT`, B texts of T tokens each. Text is tokens already. Prints JSON: of each model the bytes, and for each case the
accuracy, examples a second, and times as fast as PyTorch, by medians and by the best of the rounds.
"""

import argparse
import functools
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

BATCH, LENGTH, THREADS, CALIBRATION = 32, 128, 2, 300
SHORT = 20  # calls of a turn with one text


class Model(NamedTuple):
    """`answer` takes token ids int64 [B, T], 0 or the pad id on padding, and gives logits [B, C]. `dev` answers the
    whole dev set, as classes."""

    answer: Callable[[np.ndarray], np.ndarray]
    dev: Callable[[], np.ndarray]
    labels: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--whole", type=Path)
    parser.add_argument("--small", type=Path, action="append", default=[])
    parser.add_argument("--peer", default="", help="a Python with the packages of peers.txt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="dev,1x16,1x64,32x128")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)  # a model's process: KIND:PLACE
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # lsp takes as many threads as there are processors
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    if args.one:
        out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what the libraries print is no result
        kind, _, place = args.one.partition(":")
        makers = {"lsp": lsp, "export": export, "torch": torch, "sorted": in_order, "ort": ort, "openvino": openvino}
        makers |= {"elsewhere": elsewhere}
        answer_in_turn(makers[kind](Path(place), args), out)
        return
    if not args.peer or not args.whole:
        parser.error("--whole and --peer are needed")
    folder = args.out / "huggingface"
    if not (folder / "manifest.json").exists():
        line = [Path(sys.executable).with_name("lsp"), "export", "--from", args.whole, "--format", "huggingface"]
        subprocess.run([*map(str, line), "--out", str(folder), "--quiet"], check=True, stdout=sys.stderr)
    models = {"torch": f"torch:{folder}", "torch sorted": f"sorted:{folder}", "ONNX Runtime int8": f"ort:{folder}"}
    models |= {"OpenVINO int8": f"openvino:{folder}", f"lsp {args.whole.name}": f"lsp:{args.whole}"}
    for run in args.small:
        whole = (run / "params").exists()
        models[f"lsp {run.name}"] = f"{'lsp' if whole else 'export'}:{run}"
        if not whole and json.loads((run / "manifest.json").read_text())["compared"]["runtime"] == "any":
            models[f"lsp {run.name} in OpenVINO"] = f"elsewhere:{run}"
    print(json.dumps(compared(args, models), indent=1))


def compared(args: argparse.Namespace, models: dict[str, str]) -> dict[str, Any]:
    workers: dict[str, Any] = {}
    table: dict[str, Any] = {}
    for name, one in models.items():  # one after another, for two of the peers make the same file first
        workers[name] = started(args, one)
        table[name] = {"bytes": told(workers[name], "bytes")["bytes"]}
    for case in args.only.split(","):
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in models}
        for number in range(args.rounds + 1):
            for name, worker in workers.items():
                found = told(worker, case)
                rounds[name] += [found] if number else []  # the first one compiles
        base = [each["seconds"] for each in rounds["torch"]]
        for name, found_each in rounds.items():
            seconds = [each["seconds"] for each in found_each]
            table[name][case] = {key: found_each[0][key] for key in found_each[0] if key == "accuracy"} | {
                "examples_per_second": found_each[0]["examples"] / statistics.median(seconds),
                "times_median": statistics.median(base) / statistics.median(seconds),
                "times_best": min(base) / min(seconds),
            }
        print(json.dumps({name: table[name][case] for name in table}), file=sys.stderr, flush=True)
    return table


def told(worker: Any, case: str) -> dict[str, float]:
    worker.stdin.write(case + "\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def started(args: argparse.Namespace, one: str) -> Any:
    python = sys.executable if one.startswith(("lsp:", "export:")) else args.peer
    line = [python, __file__, "--data-root", args.data_root, "--out", args.out, "--one", one]
    settings, pipe = os.environ | {"OMP_NUM_THREADS": str(THREADS)}, subprocess.PIPE
    return subprocess.Popen([*map(str, line)], stdin=pipe, stdout=pipe, text=True, env=settings)


# --- a model's process ---------------------------------------------------------------------------------------------


def answer_in_turn(made: tuple[Model, int], out: TextIO) -> None:
    """A line of results for each case that is asked for."""
    model, size = made
    for line in sys.stdin:
        case = line.strip()
        if case == "bytes":
            found: dict[str, float] = {"bytes": size}
        elif case == "dev":
            began = time.perf_counter()
            guesses = model.dev()
            found = {"seconds": time.perf_counter() - began, "examples": len(guesses)}
            found["accuracy"] = float((guesses == model.labels).mean())
        else:
            rows, tokens = map(int, case.split("x"))
            batch = np.random.default_rng(0).integers(1000, 5000, (rows, tokens))
            times = SHORT if rows == 1 else 1
            began = time.perf_counter()
            for _ in range(times):
                model.answer(batch)
            found = {"seconds": (time.perf_counter() - began) / times, "examples": rows}
        print(json.dumps(found), file=out, flush=True)


def dev_rows(args: argparse.Namespace) -> list[tuple[str, str]]:
    lines = (args.data_root / "sst2" / "dev.tsv").read_text(encoding="utf-8").removesuffix("\n").split("\n")[1:]
    return [(text, label) for text, label in (line.split("\t") for line in lines)]


def lsp(run: Path, args: argparse.Namespace) -> tuple[Model, int]:
    from lsp.allocator import keep_freed_memory

    keep_freed_memory(one_heap=False)  # as the command line does where it answers, before jax makes threads

    import jax
    import jax.numpy as jnp
    from flax import nnx

    from lsp import checkpoint
    from lsp.model.encoder import compiler_options, graphdef
    from lsp.train import labelled
    from lsp.train.evaluate import Classifier

    base = checkpoint.open(run)
    how = labelled.Reading(base.tokenizer, min(LENGTH, base.config.max_length))
    examples = labelled.read(args.data_root / "sst2" / "dev.tsv", ((), ""), base.labels, how)
    classifier, params, structure = Classifier(base.config), jax.device_put(base.params), graphdef(base.config)

    @functools.partial(jax.jit, compiler_options=compiler_options(base.params))
    def logits(params: Any, tokens: jax.Array) -> jax.Array:
        return nnx.merge(structure, params).classify(tokens, jnp.ones_like(tokens), jnp.zeros_like(tokens))

    def answer(tokens: np.ndarray) -> np.ndarray:
        return np.asarray(logits(params, tokens.astype(np.int32)))

    model = Model(answer, lambda: classifier.logits(params, examples).argmax(1), examples.labels)
    return model, base.size()["bytes"]


def export(folder: Path, args: argparse.Namespace) -> tuple[Model, int]:
    from lsp.deploy import exported
    from lsp.train import labelled

    opened = exported.open(folder)
    how = labelled.Reading(opened.tokenizer, min(LENGTH, opened.max_length))
    examples = labelled.read(args.data_root / "sst2" / "dev.tsv", ((), ""), opened.labels, how)

    def answer(tokens: np.ndarray) -> np.ndarray:
        return opened.answer(tokens.astype(np.int32), np.zeros(tokens.shape, np.int32))

    size = json.loads((folder / "result.json").read_text())["bytes"]
    return Model(answer, lambda: opened.logits(examples).argmax(1), examples.labels), size


def batched(
    folder: Path, args: argparse.Namespace, answer: Callable[[np.ndarray], np.ndarray], by_length: bool
) -> Model:
    """The dev set in batches of texts padded to the longest, by the tokenizer of a peer's folder, or of our export."""
    import transformers

    about = json.loads((folder / "config.json").read_text())
    if "label2id" in about:
        words, ids = transformers.AutoTokenizer.from_pretrained(folder), about["label2id"]
    else:
        file = str(folder / "tokenizer.json")
        words = transformers.PreTrainedTokenizerFast(tokenizer_file=file, pad_token=about["pad_token"])
        ids = {label: number for number, label in enumerate(about["labels"])}
    rows = dev_rows(args)
    encoded = words([text for text, _ in rows], truncation=True, max_length=LENGTH)["input_ids"]
    order = sorted(range(len(rows)), key=lambda row: len(encoded[row])) if by_length else list(range(len(rows)))

    def dev() -> np.ndarray:
        guesses = np.zeros(len(rows), np.int64)
        for at in range(0, len(order), BATCH):
            some = order[at : at + BATCH]
            tokens = words.pad({"input_ids": [encoded[row] for row in some]}, return_tensors="np")["input_ids"]
            guesses[some] = answer(tokens).argmax(1)
        return guesses

    return Model(answer, dev, np.array([ids[label] for _, label in rows]))


def torch(folder: Path, args: argparse.Namespace, by_length: bool = False) -> tuple[Model, int]:
    import torch as library
    import transformers

    library.set_num_threads(THREADS)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def answer(tokens: np.ndarray) -> np.ndarray:
        with library.inference_mode():
            ids = library.from_numpy(np.asarray(tokens, np.int64))
            return model(input_ids=ids, attention_mask=(ids != 0).long()).logits.numpy()

    return batched(folder, args, answer, by_length), (folder / "model.safetensors").stat().st_size


def in_order(folder: Path, args: argparse.Namespace) -> tuple[Model, int]:
    return torch(folder, args, by_length=True)


def graph(folder: Path, args: argparse.Namespace) -> Path:
    """The peer's own fp32 ONNX file of a folder of transformers."""
    import torch as library
    import transformers

    path = args.out / "peer.onnx"
    if not path.exists():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, attn_implementation="eager"
        ).eval()
        tokens = library.ones((2, 8), dtype=library.int64)
        names, axes = ["input_ids", "attention_mask"], {0: "batch", 1: "sequence"}
        library.onnx.export(
            model, (tokens, tokens), path, input_names=names, output_names=["logits"], dynamo=False,
            dynamic_axes={name: axes for name in names} | {"logits": {0: "batch"}}, opset_version=17,
        )  # fmt: skip
    return path


def ort(folder: Path, args: argparse.Namespace) -> tuple[Model, int]:
    import onnx
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers import optimizer

    path = args.out / "ort-int8.onnx"
    if not path.exists():
        config = json.loads((folder / "config.json").read_text())
        heads, width = config["num_attention_heads"], config["hidden_size"]
        better = optimizer.optimize_model(str(graph(folder, args)), "bert", num_heads=heads, hidden_size=width)
        better.save_model_to_file(str(args.out / "ort.onnx"))
        quantize_dynamic(args.out / "ort.onnx", path, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def answer(tokens: np.ndarray) -> np.ndarray:
        ids = np.asarray(tokens, np.int64)
        return session.run(None, {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)})[0]

    return batched(folder, args, answer, by_length=True), path.stat().st_size


def openvino(folder: Path, args: argparse.Namespace) -> tuple[Model, int]:
    path = args.out / "openvino-int8.xml"
    if not path.exists():
        import nncf
        import openvino as runtime
        import transformers

        words = transformers.AutoTokenizer.from_pretrained(folder)
        lines = gzip.decompress((args.data_root / "sst2" / "train.tsv.gz").read_bytes()).decode().split("\n")
        texts = [line.split("\t")[0] for line in lines[1 : CALIBRATION + 1]]
        samples = [dict(words(text, return_tensors="np", return_token_type_ids=False)) for text in texts]
        whole = runtime.Core().read_model(graph(folder, args))
        small = nncf.quantize(
            whole, nncf.Dataset(samples), subset_size=CALIBRATION, model_type=nncf.ModelType.TRANSFORMER
        )
        runtime.save_model(small, path, compress_to_fp16=False)
    size = path.stat().st_size + path.with_suffix(".bin").stat().st_size
    return batched(folder, args, compiled(path), by_length=True), size


def compiled(graph: Path) -> Callable[[np.ndarray], np.ndarray]:
    """What OpenVINO makes of a graph."""
    import openvino as runtime

    settings = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    model = runtime.Core().compile_model(graph, "CPU", settings)
    wanted = {each.get_any_name() for each in model.inputs}

    def answer(tokens: np.ndarray) -> np.ndarray:
        ids = np.asarray(tokens, np.int64)
        given = {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64), "token_type_ids": np.zeros_like(ids)}
        return model({name: array for name, array in given.items() if name in wanted})[0]

    return answer


def elsewhere(folder: Path, args: argparse.Namespace) -> tuple[Model, int]:
    """An export of lsp's in OpenVINO."""
    size = json.loads((folder / "result.json").read_text())["bytes"]
    return batched(folder, args, compiled(folder / "model.onnx"), by_length=True), size


if __name__ == "__main__":
    main()
