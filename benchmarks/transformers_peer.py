"""PyTorch and Hugging Face transformers on the task of docs/benchmarks.md: text to encoder to SST-2 in a fixed time.

    .peers/bin/python benchmarks/transformers_peer.py --tokenizer runs/mini/tokenizer/tokenizer.model \
        --corpus DATA/corpora/enwiki --sst2 DATA/sst2 --minutes 25 --out peer > peer.json

The same corpus, the same tokenizer and ids, and the same shape (4 layers of 256, 4 heads, feed-forward 1024) as
recipes/pretrain/mini.toml, trained the way `run_mlm.py` does: documents joined end to end and cut into rows of 128
without regard to where one ends, 15 % of the positions masked anew each time, logits and loss as BertForMaskedLM has
them. The learning rate falls to zero exactly when the time is over. Then BertForSequenceClassification on SST-2, twice:
from that encoder, and from random weights (`--from-scratch` does only the second). Prints one JSON object on stdout.
Needs benchmarks/peers.txt, not lsp.
"""

import argparse
import gzip
import json
import lzma
import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import transformers
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = 5
IGNORED = -100  # torch's cross-entropy skips these targets


def main() -> None:
    args = arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    words = sentencepiece.SentencePieceProcessor(model_file=str(args.tokenizer))
    out = {"torch": torch.__version__, "transformers": transformers.__version__, "arguments": shown(args)}
    if not args.from_scratch:
        encoder = BertForMaskedLM(config(words, args))
        out["pretrain"] = pretrain(encoder, words, args)
        encoder.save_pretrained(args.out / "encoder")
        start = BertForSequenceClassification.from_pretrained(args.out / "encoder", num_labels=2)
        out["finetune"] = finetune(start, words, args)
        start.save_pretrained(args.out / "classifier")
    torch.manual_seed(args.seed)
    scratch = BertForSequenceClassification(config(words, args))
    out["scratch"] = finetune(scratch, words, args)
    (args.out / "result.json").write_text(json.dumps(out, indent=1) + "\n")
    print(json.dumps(out))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.model of an lsp run")
    parser.add_argument("--corpus", type=Path, required=True, help="folder with train.txt.xz and valid.txt.xz")
    parser.add_argument("--sst2", type=Path, required=True, help="folder with train.tsv.gz and dev.tsv")
    parser.add_argument("--out", type=Path, required=True, help="folder for the models and result.json")
    parser.add_argument("--minutes", type=float, default=25.0, help="time for the steps of pretraining")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--finetune-learning-rate", type=float, default=1e-4)
    parser.add_argument("--epochs", type=float, default=2.0, help="passes over SST-2")
    parser.add_argument("--warmup", type=float, default=0.06, help="share of the time, then of the steps")
    parser.add_argument("--dropout", type=float, default=0.1, help="BertConfig's default")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--documents", type=int, default=0, help="read only so many documents; 0 means all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from-scratch", action="store_true", help="only the classifier with random weights")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def shown(args: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}


def config(words: Any, args: argparse.Namespace) -> BertConfig:
    return BertConfig(
        vocab_size=words.get_piece_size(),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=512,
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.dropout,
        pad_token_id=PAD,  # two labels are its default
    )


# --- pretraining ----------------------------------------------------------------------------------------------------


def pretrain(model: BertForMaskedLM, words: Any, args: argparse.Namespace) -> dict[str, Any]:
    """AdamW for `--minutes`, tokenizing not counted; then loss and accuracy on the valid file with fixed masks."""
    began = time.monotonic()
    rows, valid = (
        group(words, documents(args.corpus / name, args.documents), args.sequence_length)
        for name in ("train.txt.xz", "valid.txt.xz")
    )
    reading = time.monotonic() - began
    optimizer = adamw(model, args.learning_rate)
    generator = np.random.default_rng(args.seed)
    model.train()
    step, order = 0, np.empty(0, np.int64)
    began, budget = time.monotonic(), args.minutes * 60
    while (done := (time.monotonic() - began) / budget) < 1:
        if len(order) < args.batch_size:
            order = generator.permutation(len(rows))
        chosen, order = order[: args.batch_size], order[args.batch_size :]
        tokens, targets = mask(rows[chosen], generator, words.get_piece_size())
        rate = args.learning_rate * rising_then_falling(done, args.warmup)
        loss = model(input_ids=tokens, labels=targets).loss
        update(model, optimizer, loss, rate)
        step += 1
        if step % 20 == 0:
            print(f"step {step} loss {loss.item():.3f} {100 * done:.0f} %", file=sys.stderr, flush=True)
    seconds = time.monotonic() - began
    measured = evaluate_words(model, valid, words.get_piece_size(), args.batch_size)
    return {
        "steps": step,
        "seconds": seconds,
        "tokenizing_seconds": reading,
        "tokens_per_second": step * args.batch_size * args.sequence_length / seconds,
        "rows": len(rows),
        "parameters": model.num_parameters(),
        **measured,
    }


def documents(path: Path, most: int) -> Iterator[str]:
    """Documents of a text file; an empty line ends one."""
    lines: list[str] = []
    count = 0
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            if line.strip():
                lines.append(line.strip())
            elif lines:
                yield " ".join(lines)
                lines, count = [], count + 1
                if count == most:
                    return
    if lines:
        yield " ".join(lines)


def group(words: Any, texts: Iterable[str], length: int) -> np.ndarray:
    """`group_texts` of run_mlm.py: [CLS] document [SEP], joined and cut into rows; the last part is dropped."""
    encoded = words.encode(list(texts))
    stream = np.concatenate([np.array([CLS, *ids, SEP], np.int64) for ids in encoded])
    return stream[: len(stream) // length * length].reshape(-1, length)


def mask(rows: np.ndarray, generator: np.random.Generator, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """DataCollatorForLanguageModeling: of 15 % chosen, 80 % become [MASK], 10 % any piece, 10 % stay."""
    chosen = (generator.random(rows.shape) < 0.15) & (rows >= SPECIAL)
    what = generator.random(rows.shape)
    tokens = np.where(chosen & (what < 0.8), MASK, rows)
    random = generator.integers(SPECIAL, vocabulary, rows.shape)
    tokens = np.where(chosen & (what >= 0.8) & (what < 0.9), random, tokens)
    return torch.from_numpy(tokens), torch.from_numpy(np.where(chosen, rows, IGNORED))


def evaluate_words(model: BertForMaskedLM, rows: np.ndarray, vocabulary: int, size: int) -> dict[str, float]:
    """Mean cross-entropy (nats) and accuracy over all masked positions, the same masks every time."""
    generator = np.random.default_rng(0)
    model.eval()
    total = right = count = 0.0
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            tokens, targets = mask(rows[start : start + size], generator, vocabulary)
            asked = targets != IGNORED
            logits, answers = model(input_ids=tokens).logits[asked], targets[asked]
            total += torch.nn.functional.cross_entropy(logits, answers, reduction="sum").item()
            right += (logits.argmax(-1) == answers).sum().item()
            count += len(answers)
    return {"masked_lm_loss": total / count, "masked_lm_accuracy": right / count, "masked_positions": count}


# --- the classifier -------------------------------------------------------------------------------------------------


def finetune(model: BertForSequenceClassification, words: Any, args: argparse.Namespace) -> dict[str, Any]:
    """`--epochs` over SST-2, batches of similar length padded to their longest; accuracy on the dev file."""
    train, dev = (labelled(args.sst2 / name, words, args.sequence_length) for name in ("train.tsv.gz", "dev.tsv"))
    optimizer = adamw(model, args.finetune_learning_rate)
    generator = np.random.default_rng(args.seed)
    steps = math.ceil(args.epochs * len(train) / args.batch_size)
    model.train()
    tokens = 0
    began = time.monotonic()
    for step, batch in zip(range(steps), endless(train, args.batch_size, generator), strict=False):
        inputs, labels = padded(batch)
        rate = args.finetune_learning_rate * rising_then_falling(step / steps, args.warmup)
        loss = model(**inputs, labels=labels).loss
        update(model, optimizer, loss, rate)
        tokens += int(inputs["attention_mask"].sum())
        if step % 200 == 199:
            print(f"step {step + 1}/{steps} loss {loss.item():.3f}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - began
    return {
        "accuracy": accuracy(model, dev, args.batch_size),
        "steps": steps,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }


def labelled(path: Path, words: Any, length: int) -> list[tuple[list[int], int]]:
    """Token ids and label of each line; split on line feeds and tabs only, as these files are written."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = [line.split("\t") for line in content.decode().split("\n")[1:] if line]
    encoded = words.encode([text for text, _ in lines])
    return [([CLS, *ids[: length - 2], SEP], int(label)) for ids, (_, label) in zip(encoded, lines, strict=True)]


def endless(
    examples: list[tuple[list[int], int]], size: int, generator: np.random.Generator
) -> Iterator[list[tuple[list[int], int]]]:
    """transformers' length grouping: shuffled, sorted inside pools of 50 batches, batches shuffled; each epoch anew."""
    while True:
        order = generator.permutation(len(examples))
        pools = [
            sorted(order[i : i + 50 * size], key=lambda j: -len(examples[j][0]))
            for i in range(0, len(order), 50 * size)
        ]
        flat = [j for pool in pools for j in pool]
        starts = generator.permutation(range(0, len(flat), size))
        yield from ([examples[j] for j in flat[start : start + size]] for start in starts)


def padded(batch: list[tuple[list[int], int]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    longest = max(len(ids) for ids, _ in batch)
    tokens = torch.tensor([ids + [PAD] * (longest - len(ids)) for ids, _ in batch])
    return {"input_ids": tokens, "attention_mask": (tokens != PAD).long()}, torch.tensor([label for _, label in batch])


def accuracy(model: BertForSequenceClassification, examples: list[tuple[list[int], int]], size: int) -> float:
    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(examples), size):
            inputs, labels = padded(examples[start : start + size])
            right += int((model(**inputs).logits.argmax(-1) == labels).sum())
    return right / len(examples)


# --- the optimizer --------------------------------------------------------------------------------------------------


def adamw(model: torch.nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """Decay 0.01 on matrices, none on biases and norms, as transformers' Trainer does."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8)


def update(model: torch.nn.Module, optimizer: torch.optim.AdamW, loss: torch.Tensor, rate: float) -> None:
    for part in optimizer.param_groups:
        part["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def rising_then_falling(done: float, warmup: float) -> float:
    """Linear from 0 to 1 while `done` is below `warmup`, then linear to 0 at 1."""
    return done / warmup if done < warmup else (1 - done) / (1 - warmup)


if __name__ == "__main__":
    main()
