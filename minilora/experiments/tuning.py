"""One training run of an experiment: a model, a task, so many steps; then its figures on examples kept apart.

model, tokenizer = load_model("embedded")
adapted = get_peft_model(model, LoraConfig(r=4))
train(adapted, tokenizer, task.train, steps=200, learning_rate=1e-2, seed=0)
score(adapted, tokenizer, task.held_out)["exact_match"]
"""

import tempfile
from collections.abc import Sequence

from minilora.data.collate import DataCollatorForLanguageModeling
from minilora.data.tasks import Example, encode
from minilora.train.arguments import TrainingArguments
from minilora.train.evaluate import evaluate
from minilora.train.trainer import Trainer, TrainOutput

MAX_LENGTH = 320  # tokens


def train(
    model, tokenizer, examples: Sequence[Example], *, steps: int, learning_rate: float, seed: int, batch: int = 16,
    **arguments,
) -> TrainOutput:  # fmt: skip
    """Train what of `model` requires a gradient on the examples' responses, with AdamW and a linear schedule.

    arguments: more of TrainingArguments. BLAS keeps to one thread, so that figures do not depend on the machine's.
    """
    from threadpoolctl import threadpool_limits

    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1, user_api="blas"):
        args = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=batch, learning_rate=learning_rate, seed=seed,
            overwrite_output_dir=True, **{"warmup_steps": min(10, steps // 2), "adam_beta2": 0.99} | arguments,
        )  # fmt: skip
        rows = encode(tokenizer, examples, MAX_LENGTH)
        collator = DataCollatorForLanguageModeling(tokenizer, max_length=MAX_LENGTH)
        output = Trainer(model, args, rows, data_collator=collator, save=lambda folder: None).train()
    if output.interrupted:
        raise KeyboardInterrupt  # the Trainer ends its run in good order; an experiment has more runs to come
    return output


def score(model, tokenizer, examples: Sequence[Example]) -> dict[str, float]:
    """evaluate's loss, perplexity and exact match (the whole answer, as greedy generation gives it)."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        return evaluate(model, encode(tokenizer, examples, MAX_LENGTH))
