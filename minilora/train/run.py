"""One recipe, from its configuration to the trained adapter and the figures before and after.

    result = run(load_recipe("demo"))
    result.before["exact_match"], result.after["exact_match"]

Configuration -> model and tokenizer -> quantized -> with adapters -> batches -> loss -> gradients -> adapter files.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from minilora.config import OPTIMIZERS, RunConfig
from minilora.data.collate import DataCollatorForLanguageModeling
from minilora.data.tasks import Example, Task, encode, load_task
from minilora.errors import ConfigError
from minilora.lora import LoraConfig, PeftModel, get_peft_model
from minilora.models.checkpoint import save_folder
from minilora.models.families import FAMILIES
from minilora.models.generate import generate
from minilora.models.registry import load_model
from minilora.nn import CausalLM, Module, quantize_model
from minilora.train.arguments import TrainingArguments
from minilora.train.distributed import Processes, bytes_per_step, processes
from minilora.train.evaluate import evaluate
from minilora.train.output import prepare_output_dir
from minilora.train.prepare import prepare
from minilora.train.trainer import Trainer, TrainOutput


@dataclass
class Sets:
    """What a run learns from and is measured on: examples in tokens; shown: some of `test` as text."""

    train: Sequence
    validation: Sequence
    test: Sequence
    shown: list[Example] = field(default_factory=list)
    task: Task | None = None
    notes: list[str] = field(default_factory=list)
    keep: object = None  # what the examples' files live in


@dataclass
class RunResult:
    """before, after: loss and exact match on examples that were not trained on (see evaluate), {} where there are none.
    float_bytes, model_bytes: the weights as float32 and as stored. generations: (prompt, expected, before, after)."""

    config: RunConfig
    task: Task | None
    tested: int
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
    """Fine-tune as `config` says and save to config.output_dir. Raises MiniloraError for whatever does not fit.

    progress: called with each entry of the log, in place of the bar; say: with a line on what is being done.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(config.blas_threads, user_api="blas"), processes() as workers:
        return _run(config, progress, say, overwrite, workers)


def _run(config: RunConfig, progress, say, overwrite: bool, workers: Processes) -> RunResult:
    resume = config.resume_from_checkpoint
    if workers.first:
        prepare_output_dir(config.output_dir, overwrite or bool(resume))  # before minutes are spent
    else:
        say = lambda line: None  # noqa: E731
    say(f"loading {config.base_model}")
    base, tokenizer = load_base(config)
    sets = load_sets(config, tokenizer, say)
    for note in sets.notes:
        say(note)
    float_bytes = base.memory_footprint()
    model, bits = adapt(base, config)
    collator = DataCollatorForLanguageModeling(tokenizer, max_length=config.sequence_len)
    args = training_arguments(config, overwrite)

    before = {}
    if sets.test:
        say(f"held-out exact match before, {len(sets.test)} examples")
        before = evaluate(model, sets.test, args.per_device_eval_batch_size, collator)
    shown = [(e.prompt, e.response, _answer(model, tokenizer, e.prompt)) for e in sets.shown]
    trainer = Trainer(
        model, args, sets.train, sets.validation or None, collator, progress, _saver(model, tokenizer, config), workers
    )
    trainable = sum(p.size for p in trainer.optimizer.params)
    say(f"training {trainable:,} of {model.num_parameters():,} parameters, {trainer.max_steps} steps")
    if workers.size > 1:
        sent, whole = (bytes_per_step(n, workers.size) / 1e6 for n in (trainable, model.num_parameters()))
        say(f"{workers.size} processes; each sends {sent:.2f} MB a step (with every weight trained: {whole:.2f} MB)")
    training = trainer.train(resume)
    after = {}
    if sets.test:
        say("held-out exact match after")
        after = evaluate(model, sets.test, args.per_device_eval_batch_size, collator)
    return RunResult(
        config, sets.task, len(sets.test), before, after, training, trainable, model.num_parameters(), bits,
        float_bytes, model.memory_footprint(), [(*row, _answer(model, tokenizer, row[0])) for row in shown],
    )  # fmt: skip


def _saver(model: Module, tokenizer, config: RunConfig) -> Callable | None:
    """What writes the result: None for an adapter's own save_pretrained; else a whole model's folder. After ReLoRA the
    base has changed, and only the merged model is what was trained."""
    if config.adapter == "relora":
        return lambda folder: save_folder(copy.deepcopy(model).merge_and_unload(), tokenizer, folder)
    return None if isinstance(model, PeftModel) else lambda folder: save_folder(model, tokenizer, folder)


def load_base(config: RunConfig) -> tuple[Module, object]:
    """The float base model and its tokenizer. Raises ConfigError where the model is not what the configuration says."""
    model, tokenizer = load_model(config.base_model)
    if tokenizer is None:
        raise ConfigError(f"base_model {config.base_model} has no tokenizer.json, without which text cannot be read")
    kinds = [family.architecture for family in FAMILIES.values() if family.model is type(model)]
    if config.model_type not in (None, "AutoModelForCausalLM", *kinds):
        raise ConfigError(f"model_type is {config.model_type}, but {config.base_model} is a {' or '.join(kinds)}")
    if config.is_llama_derived_model and not isinstance(model, CausalLM):
        raise ConfigError(f"is_llama_derived_model is true, but {config.base_model} is a {' or '.join(kinds)}")
    room = model.config.max_position_embeddings
    if config.sequence_len > room:
        raise ConfigError(f"sequence_len is {config.sequence_len}, but {config.base_model} has {room} positions")
    if config.random_init:
        model = type(model)(model.config, seed=config.seed)
    return model, tokenizer


def load_sets(config: RunConfig, tokenizer, say: Callable[[str], None] = lambda line: None) -> Sets:
    """The examples of the configuration's files, or of its task."""
    if config.datasets is not None:
        data = prepare(config, tokenizer, say)
        return Sets(data.train, data.validation, [], notes=data.notes, keep=data.folder)
    task = load_task(config.task)
    held_out = task.held_out[: config.test_examples]
    train, validation, test = (
        encode(tokenizer, examples, config.sequence_len)
        for examples in (task.train, task.validation[: config.eval_examples], held_out)
    )
    return Sets(train, validation, test, held_out[:2], task)


def adapt(model: Module, config: RunConfig) -> tuple[Module, float]:
    """Quantize the base and attach the adapter that the configuration asks for; also the bits a weight of the
    quantized layers (32 without)."""
    if config.load_in_4bit and not model.quantized():  # a folder may hold it in 4 bits already
        quantize_model(model, "nf4", double_quant=config.bnb_4bit_use_double_quant)
    elif config.load_in_8bit:
        quantize_model(model, "int8", blocksize="row", double_quant=False)
    quantized = model.quantized().values()
    weights = sum(q.size for q in quantized)
    bits = 8 * sum(q.nbytes for q in quantized) / weights if weights else 32.0
    if config.adapter == "full":
        return model, bits
    if config.lora_model_dir:
        return PeftModel.from_pretrained(model, config.lora_model_dir), bits
    lora = LoraConfig(
        config.lora_r, config.lora_alpha, config.lora_target_modules or "all-linear", config.lora_dropout,
        modules_to_save=config.lora_modules_to_save, fan_in_fan_out=bool(config.lora_fan_in_fan_out),
        use_rslora=config.peft_use_rslora, use_dora=config.peft_use_dora,
    )  # fmt: skip
    return get_peft_model(model, lora, seed=config.seed), bits


def training_arguments(config: RunConfig, overwrite: bool = False) -> TrainingArguments:
    return TrainingArguments(
        output_dir=config.output_dir, max_steps=config.max_steps, num_train_epochs=config.num_epochs,
        optim=OPTIMIZERS[config.optimizer], learning_rate=config.learning_rate,
        per_device_train_batch_size=config.micro_batch_size, lr_scheduler_type=config.lr_scheduler,
        gradient_accumulation_steps=config.gradient_accumulation_steps, warmup_steps=config.warmup_steps,
        warmup_ratio=config.warmup_ratio, weight_decay=config.weight_decay, adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2, adam_epsilon=config.adam_epsilon, max_grad_norm=config.max_grad_norm,
        eval_steps=config.eval_steps, save_steps=config.save_steps, save_total_limit=config.save_total_limit,
        load_best_model_at_end=config.load_best_model_at_end, logging_steps=config.logging_steps,
        early_stopping_patience=config.early_stopping_patience, bf16=config.bf16 is True, fp16=config.fp16,
        gradient_checkpointing=config.gradient_checkpointing, relora_steps=config.relora_steps,
        relora_warmup_steps=config.relora_warmup_steps, report_to="tensorboard" if config.use_tensorboard else "none",
        per_device_eval_batch_size=min(32, config.micro_batch_size * 4), seed=config.seed,
        overwrite_output_dir=overwrite,
    )  # fmt: skip


def _answer(model, tokenizer, prompt: str) -> str:
    return generate(model, tokenizer, prompt, max_new_tokens=80)
