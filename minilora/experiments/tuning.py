"""One training run of an experiment: a model, a task, so many steps; then its figures on examples kept apart.

model, tokenizer = load_model("embedded")
adapted = get_peft_model(model, LoraConfig(r=4))
train(adapted, tokenizer, task.train, steps=200, learning_rate=1e-2, seed=0)
score(adapted, tokenizer, task.held_out)["exact_match"]

`sweep` does so for several arms and seeds, each arm with the learning rate that the validation split prefers.
"""

import tempfile
from collections.abc import Callable, Sequence
from math import inf

from minilora.data.collate import DataCollatorForLanguageModeling
from minilora.data.tasks import Example, Task, encode
from minilora.errors import TrainingError
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
            overwrite_output_dir=True, disable_tqdm=True,
            **{"warmup_steps": min(10, steps // 2), "adam_beta2": 0.99} | arguments,
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


def sweep(
    arms: dict[str, Callable], tokenizer, task: Task, *, rates: Sequence[float], steps: int, seeds: list[int], say,
    batch: int = 8, examples: int = 256, also: Callable | None = None, **arguments,
) -> dict[str, dict]:  # fmt: skip
    """Of each arm, a function from a seed to a model to train: {"trainable", "tried": [{"rate", "loss"}], "rate",
    "exact_match" and "loss", seed by seed}.

    All train on the first steps * batch examples, once, in the seed's order. The learning rate is the one of `rates`
    with the least loss on `examples` of the validation split after training with the first seed (one at which the
    Trainer stops has an infinite one); the figures are those of as many held-out examples. also: a function as `score`
    that gives more figures of these. arguments: more of TrainingArguments.
    """
    out, train_on = {}, task.train[: steps * batch]
    for name, start in arms.items():

        def run(rate: float, seed: int, start=start):
            model = start(seed)
            train(model, tokenizer, train_on, steps=steps, learning_rate=rate, seed=seed, batch=batch, **arguments)
            return model

        tried = {}
        for rate in rates:
            try:
                tried[rate] = run(rate, seeds[0])
            except TrainingError:
                tried[rate] = None
        losses = {r: score(m, tokenizer, task.validation[:examples])["loss"] if m else inf for r, m in tried.items()}
        rate = min(losses, key=losses.get)
        models = [tried[rate], *(run(rate, seed) for seed in seeds[1:])]
        found = [score(model, tokenizer, task.held_out[:examples]) for model in models]
        more = [also(model, tokenizer, task.held_out[:examples]) if also else {} for model in models]
        out[name] = {
            "trainable": sum(p.size for p in models[0].trainable().values()),
            "tried": [{"rate": r, "loss": loss} for r, loss in losses.items()], "rate": rate,
            "exact_match": [f["exact_match"] for f in found], "loss": [f["loss"] for f in found],
            **{figure: [f[figure] for f in more] for figure in more[0]},
        }  # fmt: skip
        shown = ", ".join(f"{f['exact_match']:.3f}" for f in found)
        say(f"{task.name}, {name}: learning rate {rate:g}, exact match {shown}")
    return out
