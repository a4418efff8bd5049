"""Several prompts at once give what each gives alone, in every family; adapters are swapped between calls."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nn.test_packing import MODELS, every_model
from threadpoolctl import threadpool_limits

from minilora import LoraConfig, generate, generate_batch, get_peft_model, load_model, quantize_model
from minilora.errors import ConfigError, DataError, UnknownNameError
from minilora.models.generate import generate_rows, generate_tokens

NEW = 8
PROMPTS = [f"def function_{i}(self, {', '.join('abcdefgh'[: i % 8])}):\n" for i in range(16)]


def decided(model):
    """Random weights large enough for the likeliest token to be likelier than the next by more than rounding."""
    for p in model.parameters():
        p.data = p.data * 3
    return model.eval()


def adapted(model, rng, *names: str):
    peft = get_peft_model(model, LoraConfig(r=2), names[0])
    for name in names[1:]:
        peft.add_adapter(name, LoraConfig(r=2))
    for name in names:
        for p in peft.adapter_parameters(name):
            p.data = 0.3 * rng.standard_normal(p.shape, np.float32)
    return peft.eval()


def by_row(steps, n: int) -> list[list[int]]:
    rows = [[] for _ in range(n)]
    for i, token in steps:
        rows[i].append(token)
    return rows


@every_model
@given(seed=st.integers(0, 1000), lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5), data=st.data())
def test_rows_of_a_batch_go_on_as_they_do_alone(name, seed, lengths, data):
    """Also where one of them meets the end and the others go on."""
    model, rng = decided(MODELS[name]()), np.random.default_rng(seed)
    rows = [rng.integers(0, 30, n).tolist() for n in lengths]
    free = [list(generate_tokens(model, row, NEW)) for row in rows]
    eos = data.draw(st.sampled_from([None, *free[0]]))
    alone = [list(generate_tokens(model, row, NEW, eos)) for row in rows]
    assert all(eos not in row for row in alone)
    assert by_row(generate_rows(model, rows, NEW, eos), len(rows)) == alone


@every_model
def test_sampled_rows_draw_from_their_own_seeds(name, rng):
    model = decided(MODELS[name]())
    rows, seeds = [rng.integers(0, 30, n).tolist() for n in (3, 9, 5)], [[7, i] for i in range(3)]
    options = 1.5, 20, 0.95
    alone = [list(generate_tokens(model, r, NEW, 4, *options, s)) for r, s in zip(rows, seeds, strict=True)]
    assert by_row(generate_rows(model, rows, NEW, 4, *options, seeds), 3) == alone
    assert by_row(generate_rows(model, rows, NEW, 4, *options, [[8, i] for i in range(3)]), 3) != alone


@pytest.mark.parametrize("quantized", [False, True])
@every_model
def test_every_row_has_an_adapter_of_its_own(name, rng, quantized):
    model = decided(MODELS[name]())
    peft = adapted(quantize_model(model) if quantized else model, rng, "a", "b")
    names, rows = ["a", "__base__", "b", "a"], [rng.integers(0, 30, n).tolist() for n in (4, 12, 7, 7)]
    alone = []
    for adapter, row in zip(names, rows, strict=True):
        if adapter == "__base__":
            with peft.disable_adapter():
                alone.append(list(generate_tokens(peft, row, NEW)))
        else:
            peft.set_adapter(adapter)
            alone.append(list(generate_tokens(peft, row, NEW)))
    assert by_row(generate_rows(peft, rows, NEW, adapter_names=names), 4) == alone
    assert len({tuple(tokens) for tokens in alone}) > 2  # the adapters matter
    eos = alone[0][1]  # the first row leaves, the others keep theirs
    ended = [tokens[: tokens.index(eos)] if eos in tokens else tokens for tokens in alone]
    assert by_row(generate_rows(peft, rows, NEW, eos, adapter_names=names), 4) == ended


def test_a_row_that_has_ended_costs_nothing_more(rng):
    model, sizes = decided(MODELS["llama"]()), []
    rows = [rng.integers(0, 30, n).tolist() for n in (3, 6)]
    tokens = [list(generate_tokens(model, row, NEW)) for row in rows]
    eos = next(t for t in tokens[0] if t not in tokens[1])
    forward = model.forward
    model.forward = lambda ids, **options: sizes.append(len(ids)) or forward(ids, **options)
    assert by_row(generate_rows(model, rows, NEW, eos), 2) == [tokens[0][: tokens[0].index(eos)], tokens[1]]
    at = tokens[0].index(eos) + 1
    assert sizes == [2] * at + [1] * (NEW - at)


def test_swapping_adapters_between_calls_leaves_the_base_alone(rng):
    """What is served is the adapter that is set; no weight of the base changes, quantized ones included."""
    base = quantize_model(decided(MODELS["llama"]()))
    weights = {n: p.data.tobytes() for n, p in base.named_parameters()}
    packed = {path: q.packed.tobytes() for path, q in base.quantized().items()}
    rows = [rng.integers(0, 30, n).tolist() for n in (5, 8)]

    def served(model):
        return by_row(generate_rows(model, rows, NEW), 2)

    before = served(base)
    peft = adapted(base, rng, "a", "b")
    answers = {}
    for name in ("a", "b", "a", "b", "a"):
        peft.set_adapter(name)
        answers.setdefault(name, []).append(served(peft))
        with peft.disable_adapter():
            assert served(peft) == before
    steps = generate_rows(peft, rows, NEW)  # swapped within a call: what comes next is the other's, without error
    first = [next(steps) for _ in range(2)]
    peft.set_adapter("b")
    assert by_row([*first, *steps], 2) != answers["a"][0]
    assert answers["a"] == [answers["a"][0]] * 3 and answers["b"] == [answers["b"][0]] * 2
    assert answers["a"][0] != answers["b"][0] != before
    base = peft.unload()
    assert served(base) == before
    assert weights == {n: p.data.tobytes() for n, p in base.named_parameters()}
    assert packed == {path: q.packed.tobytes() for path, q in base.quantized().items()}


@pytest.fixture(scope="module")
def embedded():
    return load_model("embedded")


def test_texts(embedded):
    """In the order of the prompts, whatever the batches; sampled ones too."""
    prompts = PROMPTS[:9]
    alone = [generate(*embedded, prompt, max_new_tokens=12) for prompt in prompts]
    for size in (1, 4, 16):
        assert generate_batch(*embedded, prompts, max_new_tokens=12, batch_size=size) == alone
    sampled = generate_batch(*embedded, prompts, 12, temperature=0.8, top_p=0.9, seed=3, batch_size=4)
    assert sampled == [generate(*embedded, p, 12, 0.8, top_p=0.9, seed=[3, i]) for i, p in enumerate(prompts)]
    assert generate_batch(*embedded, []) == []


def test_a_batch_is_faster_than_its_prompts_in_turn(embedded):
    """Six times where sixteen go at once; twice is asked for."""

    def seconds(run):
        start = time.process_time()
        run()
        return time.process_time() - start

    with threadpool_limits(1, user_api="blas"):
        alone = min(seconds(lambda: [generate(*embedded, p, 24) for p in PROMPTS]) for _ in range(2))
        together = min(seconds(lambda: generate_batch(*embedded, PROMPTS, 24)) for _ in range(2))
    assert together < alone / 2


def test_bad_calls(embedded, rng):
    model, tokenizer = embedded
    with pytest.raises(DataError, match="a list of strings"):
        generate_batch(model, tokenizer, "one")
    with pytest.raises(DataError, match="exceed the model's 512 positions"):
        generate_batch(model, tokenizer, ["a", "a b " * 250], 64)
    with pytest.raises(DataError, match="the prompt is empty"):
        list(generate_rows(model, [[1], []], 4))
    with pytest.raises(ConfigError, match="temperature >= 0"):
        generate_batch(model, tokenizer, ["a"], temperature=-1)
    with pytest.raises(ConfigError, match="came without a tokenizer"):
        generate_batch(model, None, ["a"])
    with pytest.raises(ConfigError, match="adapter_names has 1 names for 1 prompts of a CausalLM"):
        generate_batch(model, tokenizer, ["a"], adapter_names=["x"])
    peft = adapted(MODELS["llama"](), rng, "a")
    with pytest.raises(ConfigError, match="adapter_names has 2 names for 1 prompts"):
        generate_batch(peft, tokenizer, ["a"], adapter_names=["a", "a"])
    with pytest.raises(UnknownNameError, match="unknown adapter 'b'"):
        list(generate_rows(peft, [[1]], 2, adapter_names=["b"]))
