"""Train the embedded base from nothing on the standard library's source, and write a card with its figures."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from minilora import files
from minilora.data.pretrain import PretrainingBatches, token_stream, windows
from minilora.data.stdlib import BUCKETS, source_files
from minilora.errors import ConfigError, unknown_name
from minilora.models.checkpoint import save_folder
from minilora.models.tokenizer import Tokenizer
from minilora.nn import CausalLM, TransformerConfig
from minilora.train.evaluate import evaluate
from minilora.train.trainer import Trainer, TrainingArguments


def bits_per_byte(model: CausalLM, stream: np.ndarray, size: int, length: int) -> float:
    """Bits that the model needs for each byte of a text (its compression): total loss / (ln 2 · bytes)."""
    scores = evaluate(model, windows(stream, length), batch_size=32)
    return scores["loss"] * scores["tokens"] / math.log(2) / size


def pretrain(output_dir, model: dict, length: int, training: dict) -> dict:
    """Train on the "train" files and measure on the others; returns (and saves as base.json) the figures.

    model: fields of TransformerConfig; length: tokens of a window; training: fields of TrainingArguments.
    """
    args = TrainingArguments(output_dir, **training)
    known = [f.name for f in dataclasses.fields(TransformerConfig)]
    for name in model:
        if name not in known:
            raise unknown_name("field of pretrain", name, known)
    try:
        config = TransformerConfig(**model)
    except TypeError as error:
        raise ConfigError(f"pretrain: {str(error).partition('() ')[2]}") from error
    tokenizer = Tokenizer.train((f.text for f in source_files("train")), config.vocab_size)
    stream, _ = token_stream(tokenizer, "train")
    network = CausalLM(config, seed=args.seed)
    batches = PretrainingBatches(stream, tokenizer.vocab_size, args.per_device_train_batch_size, length, args.seed)

    def save(folder: Path):
        save_folder(network, tokenizer, folder, np.float16)

    result = Trainer(network, args, batches, save=save).train()
    figures = {"steps": result.steps, "target_tokens": result.tokens, "training_tokens": len(stream)}
    for split in ("validation", "held-out"):
        figures[f"bits_per_byte_{split}"] = bits_per_byte(network, *token_stream(tokenizer, split), length)
    card = {
        "recipe": {"length": length, **training},
        "parameters": network.num_parameters(),
        "split": BUCKETS,
        **figures,
    }
    files.atomic_write(Path(output_dir) / "base.json", json.dumps(card, indent=2) + "\n")
    return card
