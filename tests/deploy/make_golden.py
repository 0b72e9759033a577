"""Small random encoders of every family that `lsp import` reads, with what transformers computes with them.

    .peers/bin/python tests/deploy/make_golden.py tests/deploy/golden

Writes a folder for each architecture, as `save_pretrained` writes it, with `expected.safetensors` beside: token
ids and outputs (hidden states, logits of words or classes). The environment is that of benchmarks/peers.txt.
Vocabularies are made up here, so that nothing is downloaded.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = (
    ("the cat sat on the mat", "it was warm"),
    ("a dog, who barked at the moon, slept", "nobody knew why"),
    ("naïve café 北京 <unseen> 🙂", "tests"),
)
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
LABELS = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}


def main() -> None:
    out = Path(sys.argv[1])
    torch.manual_seed(0)
    words, bytes_ = word_pieces(), byte_pairs()
    bert = transformers.BertConfig(vocab_size=words.get_vocab_size(), max_position_embeddings=40, **SMALL, **LABELS)
    save(out / "bert-pretraining", transformers.BertForPreTraining(bert), words)
    save(out / "bert-classes", transformers.BertForSequenceClassification(bert), words)
    save(out / "bert-bare", transformers.BertModel(bert), words)
    roberta = transformers.RobertaConfig(
        vocab_size=bytes_.get_vocab_size(), max_position_embeddings=42, type_vocab_size=1, layer_norm_eps=1e-5,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, **SMALL, **LABELS,
    )  # fmt: skip
    save(out / "roberta-words", transformers.RobertaForMaskedLM(roberta), bytes_)
    save(out / "roberta-classes", transformers.RobertaForSequenceClassification(roberta), bytes_)
    distilbert = transformers.DistilBertConfig(
        vocab_size=words.get_vocab_size(), max_position_embeddings=40, dim=16, n_layers=3, n_heads=2, hidden_dim=24,
        **LABELS,
    )  # fmt: skip
    save(out / "distilbert-words", transformers.DistilBertForMaskedLM(distilbert), words)
    save(out / "distilbert-classes", transformers.DistilBertForSequenceClassification(distilbert), words)
    cls, sep = (words.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    modern = transformers.ModernBertConfig(
        vocab_size=words.get_vocab_size() + 3, max_position_embeddings=40, local_attention=6, pad_token_id=0,
        cls_token_id=cls, sep_token_id=sep, bos_token_id=cls, eos_token_id=sep, classifier_pooling="mean",
        **SMALL, **LABELS,
    )  # fmt: skip
    save(out / "modernbert-words", transformers.ModernBertForMaskedLM(modern), words)
    save(out / "modernbert-classes", transformers.ModernBertForSequenceClassification(modern), words)


def save(path: Path, model: transformers.PreTrainedModel, tokens: Tokenizer) -> None:
    """The folder, and what the model answers: every parameter random, so that none can be mistaken for another."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            spread = torch.randn_like(value) * (0.2 if value.ndim > 1 else 0.1)
            value.copy_(spread + 1 if "norm" in name.lower() and name.endswith("weight") else spread)
    model.eval().save_pretrained(path)
    roles = {"[PAD]": "pad", "[CLS]": "cls", "[SEP]": "sep", "[MASK]": "mask", "[UNK]": "unk"}
    roles |= {"<pad>": "pad", "<s>": "cls", "</s>": "sep", "<mask>": "mask", "<unk>": "unk"}
    named = {f"{role}_token": piece for piece, role in roles.items() if tokens.token_to_id(piece) is not None}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, **named)
    fast.save_pretrained(path)
    typed = getattr(model.config, "type_vocab_size", 0) > 1
    expected = {}
    for kind, texts in (("single", [first for first, _ in TEXTS]), ("pair", [*TEXTS])):
        for index, text in enumerate(texts):
            pair = (text,) if isinstance(text, str) else text
            batch = fast(*pair, return_tensors="pt", return_token_type_ids=typed)
            with torch.no_grad():
                found, encoder = model(**batch), getattr(model, model.base_model_prefix, model)
                hidden = encoder(**batch).last_hidden_state[0]
            of = f"{kind}.{index}"
            expected[f"{of}.ids"] = batch["input_ids"][0].int()
            expected[f"{of}.hidden"] = hidden
            for name in ("logits", "prediction_logits", "seq_relationship_logits"):
                if name in found:
                    expected[f"{of}.{name}"] = found[name][0]
    save_file({name: value.contiguous() for name, value in expected.items()}, path / "expected.safetensors")
    (path / "texts.json").write_text(json.dumps(TEXTS, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


STEMS = ["cat", "dog", "mat", "moon", "bark", "sleep", "warm", "know", "sit", "test", "the", "it", "was", "on", "who"]


def corpus() -> list[str]:
    return [*("".join(pair) for pair in TEXTS), *(f"{stem}{end}" for stem in STEMS for end in ("", "s", "ed", "ing"))]


def word_pieces() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    # The special pieces neither first nor together, as in BERT's own vocabulary.
    specials = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[unused1]", "[SEP]", "[MASK]"]
    made.train_from_iterator(corpus(), trainers.WordPieceTrainer(vocab_size=120, special_tokens=specials))
    ends = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return made


def byte_pairs() -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token=None))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(corpus(), trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return made


if __name__ == "__main__":
    main()
