"""What a run would do, without doing it: its first batch as text, or its plan and the memory that it will need.

print("\\n".join(plan(load_recipe("demo"))))
"""

from minilora import memory
from minilora.config import RunConfig
from minilora.data.collate import Batches, DataCollatorForLanguageModeling
from minilora.data.show import show_batch
from minilora.train.run import load_base, load_sets, training_arguments


def first_batch(config: RunConfig, colour: bool = True) -> str:
    """The first training batch, decoded, with its mask and segments."""
    _, tokenizer = load_base(config)
    sets = load_sets(config, tokenizer)
    collator = DataCollatorForLanguageModeling(tokenizer, max_length=config.sequence_len)
    return show_batch(Batches(sets.train, config.micro_batch_size, collator, config.seed).batch(0), tokenizer, colour)


def plan(config: RunConfig) -> list[str]:
    """Lines to print: model, data, updates, and the memory at the longest sequence. Raises as run does."""
    model, tokenizer = load_base(config)
    sets = load_sets(config, tokenizer)
    args = training_arguments(config)
    batches = Batches(sets.train, config.micro_batch_size, seed=config.seed)
    steps, accumulated = args.steps(batches.per_epoch), config.gradient_accumulation_steps
    way = {"full": "full", "qlora": "qlora"}.get(config.adapter, "lora")
    longest = min(config.sequence_len, model.config.max_position_embeddings)
    need = memory.estimate(
        (type(model), model.config), way, config.micro_batch_size, longest, config.lora_r,
        config.lora_target_modules or "all-linear", double_quant=config.bnb_4bit_use_double_quant,
        checkpointing=config.gradient_checkpointing, lora_dropout=config.lora_dropout,
    )  # fmt: skip
    return [
        f"model       {config.base_model}: {model.num_parameters():,} parameters; adapter: {config.adapter}",
        f"data        {len(sets.train)} rows to train on, {len(sets.validation)} to validate on",
        *[f"            {note}" for note in sets.notes],
        f"updates     {steps}, each of {config.micro_batch_size} x {accumulated} rows of at most {longest} tokens: "
        f"{steps * accumulated / batches.per_epoch:.2f} epochs",
        f"rate        {config.learning_rate:g}, {config.lr_scheduler}, {config.optimizer}",
        f"precision   {args.precision}" + (", computed as float32 and rounded" if args.precision != "float32" else ""),
        f"writes      {config.output_dir}/",
        "",
        *memory.table({config.adapter: need}),
    ]
