"""The scripts of seeds 000 and 004 as programs of our own that make the same calls in the same order, here on minilora.

Seed 000's freezes a model, casts its one-dimensional weights to float32, checkpoints its layers, puts a class around
its head, attaches LoRA and trains on SQuAD v2; seed 004's prints a StarCoder, adapts a copy of it, its embeddings
included, prints that, and trains on questions about Python. What differs: the models, small enough for a test; where 8
bits are loaded, quantize_model; the questions, which are the interpreter's own (data/topics.py); and in the quick tests
of seed 000's the number of updates, 12 for 100. The slow ones make all of them.
"""

import copy

import numpy as np
import pytest

import minilora as ml
from minilora import nn
from minilora.data.formats import encode_pieces, squad_v2
from minilora.data.rows import open_rows
from minilora.data.topics import write_squad
from minilora.models.checkpoint import save_folder
from minilora.nn import Bloom, GPTBigCode, ModelConfig
from minilora.train.evaluate import evaluate

LONGEST = 128  # tokens of an example
TIED = "ignore:the embedding and the head share one weight"


# The programs.


class CastOutputToFloat(nn.Sequential):
    def forward(self, x):
        return super().forward(x).astype(np.float32)


def print_trainable_parameters(model):
    trainable = total = 0
    for _, param in model.named_parameters():
        total += param.size
        if param.requires_grad:
            trainable += param.size
    print(f"trainable params: {trainable} || all params: {total} || trainable%: {100 * trainable / total}")


def seed_000(model, tokenizer, dataset, output_dir, target_modules, steps=100):
    print(model)

    for param in model.parameters():
        param.requires_grad = False
        if param.ndim == 1:
            param.data = param.data.astype(np.float32)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.lm_head = CastOutputToFloat(model.lm_head)

    config = ml.LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=target_modules,
        lora_dropout=0.05,
        bias="none",
        task_type="CAUSAL_LM",
    )
    model = ml.get_peft_model(model, config)
    print_trainable_parameters(model)

    trainer = ml.Trainer(
        model=model,
        train_dataset=dataset["train"],
        args=ml.TrainingArguments(
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            warmup_steps=steps,
            max_steps=steps,
            learning_rate=1e-3,
            fp16=True,
            logging_steps=1,
            output_dir=output_dir,
        ),
        data_collator=ml.DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    model.config.use_cache = False
    return model, trainer.train()


def seed_004(model, tokenizer, dataset, output_dir, steps=100):
    print(model)

    config = ml.LoraConfig(
        r=16,
        lora_alpha=8,
        target_modules=["c_attn", "c_proj", "c_fc", "wte", "wpe"],
        lora_dropout=0.1,
        bias="none",
    )
    lora_model = ml.get_peft_model(copy.deepcopy(model), config)
    print(lora_model)

    trainer = ml.Trainer(
        model=lora_model,
        train_dataset=dataset["train"],
        args=ml.TrainingArguments(output_dir=output_dir, max_steps=steps),
        data_collator=ml.DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    return lora_model, trainer.train()


# What they are run on.


@pytest.fixture(scope="module")
def tokenizer():
    return ml.load_model("embedded")[1]


@pytest.fixture(scope="module")
def dataset(tokenizer, tmp_path_factory):
    """Answerable questions and others, each with the one paragraph of its passage that it is about."""
    file = tmp_path_factory.mktemp("squad") / "train.json"
    write_squad(file, "train")
    examples = []
    for row in open_rows(file):
        answers = row["answers"]["text"]
        context = next(p for p in row["context"].split("\n\n") if not answers or answers[0] in p)
        row |= {"context": context, "answers": {"text": answers, "answer_start": [context.index(a) for a in answers]}}
        examples.append({"input_ids": encode_pieces(squad_v2(row), tokenizer)["input_ids"]})
    return {"train": [e for e in examples if len(e["input_ids"]) <= LONGEST]}


def embedded_in_8_bits():
    return ml.quantize_model(ml.load_model("embedded")[0], "int8", blocksize="row", double_quant=False)


def tiny_bloom():
    return Bloom(ModelConfig(1024, 32, 128, 2, 4, max_position_embeddings=512), seed=0)


def tiny_starcoder():
    return GPTBigCode(ModelConfig(1024, 32, 128, 2, 4, num_key_value_heads=1, max_position_embeddings=512, dropout=0.1,
                                  attention_dropout=0.1, embedding_dropout=0.1), seed=0)  # fmt: skip


def halved_norms(model):
    """As a model loaded in float16 has them, to see the program's cast."""
    for p in model.parameters():
        if p.ndim == 1:
            p.data = p.data.astype(np.float16)
    return model


def stored(model) -> dict[str, bytes]:
    """Every number of a model: floats, codes, constants."""
    floats = {name: p.data.astype(np.float32).tobytes() for name, p in model.named_parameters()}
    codes = {f"{path}.{name}": a.tobytes() for path, q in model.quantized().items() for name, a in q.arrays.items()}
    return floats | codes


def logits(model) -> np.ndarray:
    with ml.no_grad():
        return model(np.arange(1, 41).reshape(2, 20)).data


def check_run(model, output, dataset, fresh_base, folder, steps: int, fall: float):
    """The loss fell by more than `fall` on the whole dataset; only LoRA's parameters did change; what was saved is what
    was trained."""
    losses = [entry["loss"] for entry in output.log]
    assert output.steps == len(losses) == steps and np.isfinite(losses).all()
    after = evaluate(model, dataset["train"])["loss"]
    with model.disable_adapter():
        before = evaluate(model, dataset["train"])["loss"]
    assert before - after > fall
    lora = {name for name in dict(model.named_parameters()) if ".lora_" in name}
    assert model.trainable().keys() == lora and lora
    again = ml.PeftModel.from_pretrained(fresh_base, folder)
    np.testing.assert_array_equal(logits(again.eval()), logits(model))
    saved = {name: p.data.tobytes() for name, p in again.trainable().items()}
    assert saved == {name: p.data.tobytes() for name, p in model.trainable().items()}


updates = pytest.mark.parametrize("steps", [12, pytest.param(100, marks=pytest.mark.slow)])


@updates
@pytest.mark.parametrize(
    ("make", "targets", "falls"),
    [
        pytest.param(embedded_in_8_bits, ["q_proj", "k_proj", "v_proj"], {12: 0.1, 100: 1.0}, marks=pytest.mark.slow),
        (tiny_bloom, ["query_key_value"], {12: 0.001, 100: 0.03}),
    ],
)
def test_seed_000_s_script(tmp_path, capsys, tokenizer, dataset, make, targets, falls, steps):
    """The embedded model is a LLaMA: what BLOOM has in one layer, query_key_value, are three. (In the BLOOM, of random
    weights, there is little for attention to find.)"""
    base = halved_norms(make())
    before = stored(base)
    model, output = seed_000(base, tokenizer, dataset, tmp_path, targets, steps)
    check_run(model, output, dataset, make(), tmp_path, steps, falls[steps])
    assert all(p.dtype == np.float32 for p in model.parameters())
    shown = capsys.readouterr().out
    adapted = sum(8 * sum(layer.shape) for layer in model.adapters().values())
    assert f"trainable params: {adapted} || all params: {sum(p.size for p in model.parameters())} ||" in shown
    assert repr(make()) == shown[: shown.index("trainable params")].rstrip()
    assert "(lm_head): CastOutputToFloat(" in repr(model)
    base = model.unload()
    base.lm_head = base.lm_head[0]
    assert stored(base) == before
    plain = make().eval()  # use_cache is about memory in training: generating caches anyway
    assert ml.generate(base, tokenizer, "def f(", 3) == ml.generate(plain, tokenizer, "def f(", 3)


@pytest.mark.filterwarnings(TIED)
def test_seed_004_s_script(tmp_path, capsys, tokenizer, dataset):
    """The copy is trained, embeddings of tokens and positions too; the model that was copied stays as it was."""
    base = tiny_starcoder()
    before = stored(base)
    model, output = seed_004(base, tokenizer, dataset, tmp_path)
    check_run(model, output, dataset, tiny_starcoder(), tmp_path, 100, fall=0.1)
    assert stored(base) == before and all(p.requires_grad for p in base.parameters())
    assert capsys.readouterr().out.startswith(f"{tiny_starcoder()!r}\nPeftModel(")
    assert {path.rpartition(".")[2] for path in model.adapters()} == {"c_attn", "c_proj", "c_fc", "wte", "wpe"}
    base = model.unload()
    assert stored(base) == before


# A head within a class: what else must go on working.


@pytest.fixture
def cast():
    def build(make):
        model = make().eval()
        model.lm_head = CastOutputToFloat(model.lm_head)
        return model

    return build


def untied():
    return Bloom(ModelConfig(1024, 32, 128, 2, 4, max_position_embeddings=512, tie_word_embeddings=False), seed=0)


kinds = pytest.mark.parametrize("make", [tiny_bloom, untied, embedded_in_8_bits])


@kinds
def test_a_head_in_a_class_computes_the_same(cast, make):
    """And gives every parameter the same gradient."""
    models = [make().eval(), cast(make)]
    np.testing.assert_array_equal(*map(logits, models))
    ids = np.arange(1, 41).reshape(2, 20)
    for model in models:
        model.loss(ids, ids).backward()
    plain, wrapped = (dict(model.named_parameters()) for model in models)
    assert [name.replace("lm_head.0.", "lm_head.") for name in wrapped] == list(plain)
    for name, a, b in zip(plain, plain.values(), wrapped.values(), strict=True):
        np.testing.assert_array_equal(a.grad, b.grad, err_msg=name)


@kinds
def test_an_adapter_goes_from_one_to_the_other(tmp_path, cast, make):
    """The class changes no weight, so the base's fingerprint is the same."""
    plain, wrapped = make().eval(), cast(make)
    peft = ml.get_peft_model(wrapped, ml.LoraConfig(r=2, target_modules="all-linear"))
    assert not any("lm_head" in path for path in peft.adapters())
    for p in peft.trainable().values():
        p.data = p.data + np.float32(0.01)
    peft.save_pretrained(tmp_path)
    again = ml.PeftModel.from_pretrained(plain, tmp_path)
    np.testing.assert_array_equal(logits(again), logits(peft))
    assert again.fingerprint == peft.fingerprint
    merged = peft.merge_and_unload()
    assert merged.config.tie_word_embeddings == (make is not untied)
    np.testing.assert_allclose(logits(merged), logits(again), atol=1e-4)


@pytest.mark.parametrize("make", [tiny_bloom, untied])
def test_a_head_in_a_class_is_not_quantized(cast, make):
    model = ml.quantize_model(cast(make))
    assert model.quantized() and not any("lm_head" in path for path in model.quantized())


def test_a_model_with_such_a_head_is_saved_without_it(tmp_path, cast):
    """Tied, its files are the plain model's; a head of its own has another name, and saving says so."""
    model = cast(tiny_bloom)
    save_folder(model, None, tmp_path / "tied")
    np.testing.assert_array_equal(logits(ml.load_model(tmp_path / "tied")[0]), logits(model))
    model = cast(untied)
    with pytest.raises(ml.MiniloraError, match=r"the first 'lm_head\.0\.weight'"):
        save_folder(model, None, tmp_path / "untied")
    model.lm_head = model.lm_head[0]
    save_folder(model, None, tmp_path / "untied")
    np.testing.assert_array_equal(logits(ml.load_model(tmp_path / "untied")[0]), logits(model))
