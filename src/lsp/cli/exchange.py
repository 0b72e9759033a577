"""Checkpoints of others in, and ours out."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lsp import LspError, console
from lsp.arguments import FromOpt, JsonOpt, OutOpt, OverwriteOpt, QuietOpt, apart, need, need_package
from lsp.cli.app import app, report


@app.command("import", short_help="A published checkpoint to a run.")
def import_(
    *,
    start: Annotated[
        Path, typer.Argument(metavar="HF_DIR", help="A folder in the layout of Hugging Face.", show_default=False)
    ],
    out: OutOpt,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp import downloads/all-MiniLM-L6-v2 --out runs/minilm

    Take in a BERT, RoBERTa, DistilBERT, MiniLM or ModernBERT: config.json,
    model.safetensors and the tokenizer's files. No code in the folder is run,
    nothing is unpickled, and no torch is needed.
    """
    need(start)
    apart(out, start)
    from lsp.commands import import_ as verb

    return report(verb.run(start, out, overwrite, console.Progress(quiet)), as_json)


@app.command(short_help="A run as files for other software.")
def export(
    *,
    begin: FromOpt,
    kind: Annotated[
        Literal["huggingface", "onnx", "stablehlo"],
        typer.Option("--format", help="Which software it is for.", show_default=False),
    ],
    out: OutOpt,
    runtime: Annotated[
        Literal["any", "onnxruntime"],
        typer.Option(
            "--runtime", help="What will run an ONNX file: any, OpenVINO too; or onnxruntime, where int8 is faster so."
        ),
    ] = "any",
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp export --from runs/sst2 --format huggingface --out exports/sst2

    Write a folder with the model, its labels and its tokenizer, and compare it with
    the run before it counts. huggingface: what AutoModel.from_pretrained of
    transformers loads, in float32, parameters bit for bit. onnx: one file for ONNX
    Runtime and others. stablehlo: a program that jax alone runs. The last two are
    int8 where the run is, their answers are compared over lengths, batches and
    padding, and lsp predict and lsp bench take them.
    """
    need(begin)
    apart(out, begin)
    packages = {"onnx": ("onnx", "onnxruntime"), "stablehlo": ("flatbuffers",)}
    for package in packages.get(kind, ()):
        need_package(package, kind, f"--format {kind}")
    if runtime != "any" and kind != "onnx":
        raise LspError(f"--runtime is for ONNX files, and --format is {kind}.", hint="Leave it out.")
    from lsp.commands import export as verb

    return report(verb.run(begin, out, kind, overwrite, console.Progress(quiet), runtime), as_json)
