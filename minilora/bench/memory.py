"""The memory estimate beside what a process really takes, by tracemalloc: full, LoRA, QLoRA.

python -m minilora.bench.memory smollm2-135m --batch 2 --seq 128
"""

import argparse
import gc
import tempfile
import tracemalloc

import numpy as np

from minilora import LoraConfig, Trainer, TrainingArguments, get_peft_model, load_model, quantize_model
from minilora.memory import Memory, estimate


def measure(
    name: str, adapter: str, batch: int, seq: int, steps: int = 3, checkpointing: bool = False
) -> tuple[Memory, int]:
    """The estimate, and the peak of bytes that NumPy and Python held while so many updates were made."""
    gc.collect()
    tracemalloc.start()
    try:
        model, _ = load_model(name)
        shape = type(model), model.config
        if adapter == "qlora":
            quantize_model(model, "nf4", double_quant=True)
        if adapter != "full":
            model = get_peft_model(model, LoraConfig(r=8))
        rows = [{"input_ids": np.random.default_rng(0).integers(0, 1000, seq)}] * batch
        gc.collect()
        tracemalloc.reset_peak()
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=batch,
                gradient_checkpointing=checkpointing,
                disable_tqdm=True,
            )
            Trainer(model, args, rows, save=lambda folder: None).train()
        need = estimate(shape, adapter, batch, seq, checkpointing=checkpointing)
        return need, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seq", type=int, default=128)
    args = parser.parse_args()
    for adapter in ("full", "lora", "qlora"):
        need, peak = measure(args.model, adapter, args.batch, args.seq)
        print(f"{adapter:<6} estimated {need.peak / 1e6:>9,.1f} MB   measured {peak / 1e6:>9,.1f} MB")


if __name__ == "__main__":
    main()
