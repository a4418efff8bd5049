"""`minilora bench train`: training steps against straight-line NumPy, and decoding against reading the weights once.

Times are CPU seconds of one process at one thread (set OPENBLAS_NUM_THREADS=1), the median of alternated runs, and
quoted as ratios only: machines differ, and these were shared.
"""

import statistics
import time

import numpy as np

from minilora import LoraConfig, get_peft_model, no_grad, quantize_model
from minilora.bench.timing import compare
from minilora.bench.yardstick import LEARNING_RATE, adamw
from minilora.bench.yardstick import step as yardstick_step
from minilora.doctor import blas, cpu
from minilora.errors import MiniloraError
from minilora.models.registry import load_model
from minilora.nn import CausalLM, TransformerConfig
from minilora.train.optim import AdamW

BATCH, LENGTH, VOCAB, HEADS = 16, 128, 2048, 8
SHORT = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj": "o",
         "mlp.up_proj": "up", "mlp.down_proj": "down", "input_layernorm": "ln1", "post_attention_layernorm": "ln2",
         "embed_tokens": "embed_tokens", "embed_positions": "embed_positions", "norm": "norm"}  # fmt: skip


def gpt(hidden: int, layers: int) -> CausalLM:
    """GPT-2's shape at small size: learned positions, LayerNorm, tanh GELU, biases, a tied head."""
    config = TransformerConfig(
        VOCAB, hidden, 4 * hidden, layers, HEADS, max_position_embeddings=LENGTH, norm="layernorm",
        activation="gelu_tanh", positions="learned", bias=True,
    )  # fmt: skip
    return CausalLM(config, seed=0)


def yardstick_weights(model: CausalLM) -> dict[str, np.ndarray]:
    """The model's arrays (shared) under the yardstick's short names."""
    weights = {}
    for name, array in model.state_dict().items():
        path, _, kind = name.removeprefix("model.").rpartition(".")
        layer, _, rest = path.removeprefix("layers.").partition(".") if path.startswith("layers.") else ("", "", path)
        short = f"{layer}.{SHORT[rest]}" if layer else SHORT[rest]
        weights[short + (".bias" if kind == "bias" else "")] = array
    return weights


def training_ratio(hidden: int, layers: int, lora: bool) -> float:
    """A step (forward, backward, AdamW) of minilora / of the yardstick, on equal weights, gradients held equal."""
    model = gpt(hidden, layers)
    weights = {name: array.copy() for name, array in yardstick_weights(model).items()}
    ids = np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH + 1))
    pairs, scaling = None, 2.0
    if lora:
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
        pairs = {}
        for path, layer in model.adapters().items():
            number, _, rest = path.partition("layers.")[2].partition(".")
            pairs[f"{number}.{SHORT[rest]}"] = (layer.lora_A.weight.data.copy(), layer.lora_B.weight.data.copy())
    trained = weights
    if lora:
        trained = {f"{n}.{part}": a for n, pair in pairs.items() for part, a in zip("AB", pair, strict=True)}
    state = {name: (np.zeros(a.size, np.float32), np.zeros(a.size, np.float32)) for name, a in trained.items()}
    optimizer = AdamW(model.parameters(), LEARNING_RATE)

    def ours():
        optimizer.zero_grad()
        loss = model.loss(ids, ids)
        loss.backward()
        optimizer.step()
        return loss.item()

    def theirs():
        loss, gradients = yardstick_step(weights, ids, HEADS, layers, pairs, scaling)
        arrays, flat = trained, {}
        for name, g in gradients.items():
            flat |= {name + ".A": g[0], name + ".B": g[1]} if lora else {name: g}
        adamw(arrays, flat, state)
        return loss, gradients

    loss, gradients = theirs()
    if abs(ours() - loss) > 1e-4:
        raise MiniloraError("the yardstick and the model disagree: their times cannot be compared")
    shown = ("lora_B.default.weight", "0.mlp.up_proj.weight")
    name, p = next((n, p) for n, p in model.named_parameters() if n.endswith(shown))
    expected = gradients["0.q"][1] if lora else gradients["0.up"]
    if np.abs(p.grad - expected).max() > 1e-4:
        raise MiniloraError(f"the yardstick and the model disagree on the gradient of {name}")
    return compare(ours, theirs)


def decode_ratios() -> tuple[float, float]:
    """Time of a decoded SmolLM2 token / of one gemv with every weight, from float weights and from the 4-bit base."""
    model, _ = load_model("smollm2-135m")
    matrices = [p.data for p in model.parameters() if p.ndim == 2]
    vectors = [np.ones(m.shape[1], np.float32) for m in matrices]

    def read_once():
        for m, v in zip(matrices, vectors, strict=True):
            m @ v

    def decode():
        cache = model.new_cache(1, 64)
        with no_grad():
            model(np.arange(1, 33)[None], cache=cache, last_only=True)
            start = time.process_time()
            for _ in range(8):
                model(np.array([[5]]), cache=cache, last_only=True)
            return (time.process_time() - start) / 8

    def ratio() -> float:
        decode()
        read_once()
        ratios = []
        for _ in range(5):
            a = decode()
            start = time.process_time()
            for _ in range(8):
                read_once()
            ratios.append(a / ((time.process_time() - start) / 8))
        return statistics.median(ratios)

    dense = ratio()
    quantize_model(model, "nf4", double_quant=True)
    return dense, ratio()


def main():
    print(f"{cpu()}; BLAS {blas()}; NumPy {np.__version__}")
    print("training step, minilora / straight-line NumPy:")
    for hidden, layers in ((256, 6), (512, 8)):
        for lora in (False, True):
            ratio = training_ratio(hidden, layers, lora)
            print(f"  d{hidden} L{layers} {'LoRA q,v r=8' if lora else 'full':<14}{ratio:6.3f}", flush=True)
    try:
        dense, quantized = decode_ratios()
    except MiniloraError as error:
        print(f"decoding SmolLM2: not measured ({error})")
        return
    print("decoding SmolLM2, a token / one gemv with every float weight:")
    print(f"  float weights {dense:6.3f}\n  NF4 base      {quantized:6.3f}")
