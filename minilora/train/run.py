"""One recipe, from its configuration to the trained adapter and the figures before and after.

    result = run(load_recipe("demo"))
    result.before["exact_match"], result.after["exact_match"]

Configuration -> model and tokenizer -> quantized -> with adapters -> batches -> loss -> gradients -> adapter files.
"""

from collections.abc import Callable
from dataclasses import dataclass

from minilora.config import RunConfig
from minilora.data.collate import DataCollatorForLanguageModeling
from minilora.data.tasks import Task, encode, load_task
from minilora.lora import LoraConfig, get_peft_model
from minilora.models.checkpoint import save_folder
from minilora.models.generate import generate
from minilora.models.registry import load_model
from minilora.nn import quantize_model
from minilora.train.evaluate import evaluate
from minilora.train.trainer import Trainer, TrainingArguments, TrainOutput, prepare_output_dir


@dataclass
class RunResult:
    """before, after: loss and exact match on held-out examples (see evaluate). float_bytes, model_bytes: the weights
    as float32 and as stored. generations: (prompt, expected, before, after)."""

    config: RunConfig
    task: Task
    before: dict
    after: dict
    training: TrainOutput
    trainable: int
    total: int
    bits_per_weight: float
    float_bytes: int
    model_bytes: int
    generations: list[tuple[str, str, str, str]]


def run(
    config: RunConfig,
    progress: Callable[[dict], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
    overwrite: bool = False,
) -> RunResult:
    """Fine-tune as `config` says and save to config.output_dir. Raises MiniloraError for whatever does not fit."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(config.blas_threads, user_api="blas"):
        return _run(config, progress, say, overwrite)


def _run(config: RunConfig, progress, say, overwrite: bool) -> RunResult:
    prepare_output_dir(config.output_dir, overwrite)  # before minutes are spent
    say(f"loading {config.base_model}")
    model, tokenizer = load_model(config.base_model)
    if config.random_init:
        model = type(model)(model.config, seed=config.seed)
    float_bytes = model.memory_footprint()
    task = load_task(config.task)
    train = encode(tokenizer, task.train, config.sequence_len)
    validation = encode(tokenizer, task.validation[: config.eval_examples], config.sequence_len)
    held_out = task.held_out[: config.test_examples]
    test = encode(tokenizer, held_out, config.sequence_len)
    if config.load_in_4bit:
        quantize_model(model, "nf4", double_quant=config.bnb_4bit_use_double_quant)
    quantized = model.quantized().values()
    weights = sum(q.size for q in quantized)
    bits = 8 * sum(q.nbytes for q in quantized) / weights if weights else 32.0
    if config.adapter != "none":
        lora = LoraConfig(config.lora_r, config.lora_alpha, config.lora_target_modules, config.lora_dropout)
        model = get_peft_model(model, lora, seed=config.seed)
    collator = DataCollatorForLanguageModeling(tokenizer, max_length=config.sequence_len)
    batch_size = min(32, config.micro_batch_size * 4)

    say(f"held-out exact match before, {len(test)} examples")
    before = evaluate(model, test, batch_size, collator)
    shown = [(e.prompt, e.response, _answer(model, tokenizer, e.prompt)) for e in held_out[:2]]
    args = TrainingArguments(
        output_dir=config.output_dir, max_steps=config.max_steps, optim=config.optimizer,
        learning_rate=config.learning_rate, per_device_train_batch_size=config.micro_batch_size,
        lr_scheduler_type=config.lr_scheduler,
        gradient_accumulation_steps=config.gradient_accumulation_steps, warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay, adam_beta2=config.adam_beta2, max_grad_norm=config.max_grad_norm,
        eval_steps=config.eval_steps, per_device_eval_batch_size=batch_size, seed=config.seed,
        overwrite_output_dir=overwrite,
    )  # fmt: skip
    save = None if config.adapter != "none" else lambda folder: save_folder(model, tokenizer, folder)
    trainer = Trainer(model, args, train, validation, collator, progress, save)
    trainable = sum(p.size for p in trainer.optimizer.params)
    say(f"training {trainable:,} of {model.num_parameters():,} parameters, {config.max_steps} steps")
    training = trainer.train()
    say("held-out exact match after")
    after = evaluate(model, test, batch_size, collator)
    return RunResult(
        config, task, before, after, training, trainable, model.num_parameters(), bits, float_bytes,
        model.memory_footprint(), [(*row, _answer(model, tokenizer, row[0])) for row in shown],
    )  # fmt: skip


def _answer(model, tokenizer, prompt: str) -> str:
    return generate(model, tokenizer, prompt, max_new_tokens=80)
