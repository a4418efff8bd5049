# %% [markdown]
# # 10. QLoRA, equation by equation
#
# The base model is stored in 4 bits and never changes. Adapters beside it are trained. The error at the end must reach an
# adapter at the beginning, and the way leads through those stored weights. **How does a gradient pass through a weight
# that has no gradient, and through a rounding whose derivative is zero?**
#
# *About 14 minutes. Before it: lesson 5 (LoRA), lesson 8 (NF4), lesson 9 (double quantization).*

# %%
import numpy as np

import minilora as ml
from minilora.autograd.rounding import to_bfloat16
from minilora.data.collate import Batches
from minilora.data.tasks import encode, load_task
from minilora.train.optim import AdamW
from minilora.viz.intervals import curves
from minilora.viz.qlora import qlora_layer

rng = np.random.default_rng(0)
model, tokenizer = ml.load_model("embedded")
W = model.get_submodule("model.layers.0.mlp.up_proj").weight.data.T.copy()  # (128, 352)

# %% [markdown]
# ## Equations 1 and 2: round and come back
#
# $$X^{Int8} = \operatorname{round}\!\left(\tfrac{127}{\operatorname{absmax}(X)}\, X\right)
# = \operatorname{round}(c \cdot X), \qquad \operatorname{dequant}(c, X^{Int8}) = X^{Int8} / c$$
#
# Lesson 7, with c = 127/absmax. The last step gives X again only up to rounding. minilora stores absmax, not its
# inverse, and multiplies on the way back.
#
# ## Equation 3: the adapter
#
# $$Y = X W + s\, X L_1 L_2$$
#
# X is (b, h), W (h, o), L₁ (h, r), L₂ (r, o), and s a scale. It is the layer of lesson 5 in other letters: minilora and
# PEFT store all of them transposed, A = L₁ᵀ and B = L₂ᵀ, and s = α/r.

# %%
b, (h, o), r, s = 5, W.shape, 8, 2.0
X = rng.standard_normal((b, h)).astype(np.float32)
L1 = rng.standard_normal((h, r)).astype(np.float32) / 8
L2 = rng.standard_normal((r, o)).astype(np.float32) / 8
Y = X @ W + s * X @ L1 @ L2  # equation 3

linear = ml.nn.Linear(h, o)
linear.weight.data[:] = W.T
layer = ml.get_peft_model(
    ml.nn.Sequential(linear), ml.LoraConfig(r=r, lora_alpha=s * r, target_modules=["0"])
).get_submodule("base_model.model.0")
layer.lora_A["default"].weight.data[:] = L1.T
layer.lora_B["default"].weight.data[:] = L2.T
assert np.allclose(layer(ml.Tensor(X)).data, Y, atol=1e-3)
print("the library's layer is equation 3")

# %% [markdown]
# ## Equation 4: sixteen quantiles
#
# Lesson 8. (Taken literally it gives fifteen; NF4 has eight levels above zero, seven below, and zero.)
#
# ## Equation 6: from storage to numbers
#
# We take 6 before 5, because 5 uses it.
#
# $$\operatorname{doubleDequant}(c_1, c_2, W^{NF4})
# = \operatorname{dequant}(\operatorname{dequant}(c_1, c_2),\, W^{NF4}) = W^{BF16}$$
#
# c₂ are the absmax values of the blocks, in 8 bits; c₁ are the float32 numbers that scale those (with their mean, which
# the equation does not show). From the inside out: c₁ and c₂ give absmax, absmax and the codes give W.

# %%
q = ml.quantize(W.T, "nf4", blocksize=64, double_quant=True)  # as stored: (o, h), row by row


def double_dequant(q):
    absmax = ml.quant.DYNAMIC_MAP[q.absmax_codes]  # dequant(c1, c2) ...
    absmax = absmax * np.repeat(q.absmax2, 256)[: len(absmax)] + q.offset
    codes = np.stack([q.packed >> 4, q.packed & 15], axis=1).reshape(-1, 64)
    W = ml.quant.CODES["nf4"][codes] * absmax[:, None]  # ... dequant(absmax, codes)
    return W.reshape(q.shape)


assert np.array_equal(double_dequant(q), q.dequantize())
Wq = double_dequant(q).T  # (h, o)
W16 = to_bfloat16(Wq)

# %% [markdown]
# **Before you run:** two roundings were made, to NF4 and then to bfloat16. Which one makes the larger error, and by how
# much: twice, ten times, fifty times?

# %%
my_guess = None


def relative(error, of):
    return np.sqrt(np.mean(error**2) / np.mean(of**2))


print(f"NF4: {relative(Wq - W, W):.4f}   then bfloat16: {relative(W16 - Wq, W):.4f}")

# %% [markdown]
# Fifty times and more. What computes in 16 bits costs nothing that the 4 bits have not cost many times over.
#
# ## Equation 5: the layer
#
# $$Y^{BF16} = X^{BF16}\, \operatorname{doubleDequant}(c_1, c_2, W^{NF4}) + X^{BF16} L_1^{BF16} L_2^{BF16}$$
#
# Two data types: one to store (NF4), one to compute (bfloat16). There is no arithmetic in 4 bits anywhere. W exists as
# numbers only while the product is computed, a part of it at a time. Storage is saved, time is not: dequantizing is extra
# work.

# %%
qlora_layer(h, o, r)

# %%
quantized = ml.nn.Sequential(ml.nn.QuantizedLinear(q))
config = ml.LoraConfig(r=r, lora_alpha=s * r, target_modules=["0"])
layer = ml.get_peft_model(quantized, config).get_submodule("base_model.model.0")
layer.lora_A["default"].weight.data[:] = L1.T
layer.lora_B["default"].weight.data[:] = L2.T

Y = X @ Wq + s * X @ L1 @ L2
assert np.allclose(layer(ml.Tensor(X)).data, Y, atol=1e-3)
with ml.autograd.autocast("bfloat16"):  # every result rounded to bfloat16
    Y16 = layer(ml.Tensor(X)).data
print(f"computed in bfloat16, Y differs by {relative(Y16 - Y, Y):.4f}")

# %% [markdown]
# ## Backward: what the rounding has to do with it
#
# The derivative of rounding is zero almost everywhere: move a weight a little and its code stays. Methods that train the
# weights *through* their rounding must work around that (straight-through estimators). QLoRA need not. The codes are constants, so nobody asks for a derivative
# of W. What is asked for is how Y depends on X, L₁ and L₂ at these constants, and Y is as smooth in them as in any
# layer. With G = ∂E/∂Y:
#
# $$\frac{\partial E}{\partial L_2} = s\,(X L_1)^\top G \qquad
# \frac{\partial E}{\partial L_1} = s\, X^\top (G L_2^\top) \qquad
# \frac{\partial E}{\partial X} = G\, W^\top + s\, G L_2^\top L_1^\top$$

# %%
qlora_layer(h, o, r, backward=True)

# %%
G = rng.standard_normal((b, o)).astype(np.float32)
gL2 = s * (X @ L1).T @ G
gL1 = s * X.T @ (G @ L2.T)
gX = G @ Wq.T + s * G @ L2.T @ L1.T

x = ml.Tensor(X, requires_grad=True)
(layer(x) * G).sum().backward()
A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
assert np.allclose(A.grad, gL1.T, atol=1e-3) and np.allclose(B.grad, gL2.T, atol=1e-3)
assert np.allclose(x.grad, gX, atol=1e-3)
print("equal; have the codes a gradient?", hasattr(q, "grad"))

# %% [markdown]
# In the library this is one op, `linear_4bit`: its rule for x is the same product with W transposed, dequantized once
# more, and in the place of W's rule there is `None` (`minilora/ops/linalg.py`).
#
# ## Why ∂E/∂L needs W at all
#
# Look at the first two formulas: there is no W in them. Yet the paper says that the gradient of L entails
# dequantizing W (it writes "∂X/∂W"; what the chain rule needs is how a layer's output depends on its input, and
# that *is* W). The answer is in G. It comes from the layers *above*, and each of them has handed it down by the third
# formula, G Wᵀ + s G L₂ᵀ L₁ᵀ. That is what "gradients are passed through the fixed pretrained weights to the adapter"
# says.
#
# To see it, stack two layers, Z = layer₂(layer₁(X)), with adapters L and M. In the backward pass, forget the way through
# W₂: hand down only s G M₂ᵀ M₁ᵀ.
#
# **Before you run:** which of the gradients of L₁, L₂, M₁, M₂ will be wrong? And how wrong, when M₂ is still zero, as it
# is at the first step?

# %%
my_guess = None


def dequantized(h, o):
    w = rng.standard_normal((h, o)).astype(np.float32)
    return ml.quantize(w, "nf4").dequantize().astype(float)


W1, W2 = dequantized(64, 64), dequantized(64, 64)
L1, M1 = rng.standard_normal((2, 64, 4)) / 8
L2, M2 = rng.standard_normal((2, 4, 64)) / 8
X, G = rng.standard_normal((2, 5, 64))


def forward(L1, L2, M1, M2):
    Y = X @ W1 + s * X @ L1 @ L2
    return Y, Y @ W2 + s * Y @ M1 @ M2


def gradients(L1, L2, M1, M2, through_W2):
    Y, _ = forward(L1, L2, M1, M2)
    gM2, gM1 = s * (Y @ M1).T @ G, s * Y.T @ (G @ M2.T)
    gY = (G @ W2.T if through_W2 else 0) + s * G @ M2.T @ M1.T
    gL2, gL1 = s * (X @ L1).T @ gY, s * X.T @ (gY @ L2.T)
    return gL1, gL2, gM1, gM2


def change(i, adapters):
    """How E = sum(G Z) changes along a random direction of one adapter, and the direction."""
    direction = rng.standard_normal(adapters[i].shape)
    moved = [a + 1e-30j * direction if k == i else a for k, a in enumerate(adapters)]
    return np.sum(G * forward(*moved)[1].imag) / 1e-30, direction


for state, adapters in (("trained", (L1, L2, M1, M2)), ("zero", (L1, L2, M1, 0 * M2))):
    print("M2 is", state)
    right, wrong = (gradients(*adapters, through_W2=way) for way in (True, False))
    for i, name in enumerate(("L1", "L2", "M1", "M2")):
        true, direction = change(i, adapters)
        with_W2, without = np.sum(direction * right[i]), np.sum(direction * wrong[i])
        print(f"  {name}: true {true:8.2f}   through W2 {with_W2:8.2f}   without {without:8.2f}")

# %% [markdown]
# M's gradients are right either way: G is at hand. L's need W₂. At the first step, with M₂ = 0, *all* that reaches L comes
# through the frozen W₂; without it, L would not move. (M₁'s gradient is zero then, as in lesson 5.)
#
# ## Counting dequantizations
#
# So a step dequantizes W once forward, and once more backward wherever a gradient has to go on to something trained
# below. Let us count in the real model. It has 4 transformer blocks (not those of quantization) with 7 linear layers
# each.
#
# **Before you run:** adapters on all 28 layers; then only on those of the last block; then on a single one,
# `q_proj` of the first block. How many of the 28 are dequantized in the backward pass?

# %%
my_guess = None


class Counting:
    """A QuantizedArray that counts its products."""

    def __init__(self, q, counts):
        self.q, self.counts = q, counts

    def __getattr__(self, name):
        return getattr(self.q, name)

    def matmul(self, x, transpose=False):
        self.counts["backward" if transpose else "forward"] += 1
        return self.q.matmul(x, transpose)


def count(targets):
    model, _ = ml.load_model("embedded")
    ml.quantize_model(model, "nf4", double_quant=True)
    model = ml.get_peft_model(model, ml.LoraConfig(r=8, target_modules=targets))
    counts = {"forward": 0, "backward": 0}
    for _, module in model.named_modules():
        if isinstance(module, ml.nn.QuantizedLinear):
            module.quantized_weight = Counting(module.quantized_weight, counts)
    ids = np.arange(32)[None]
    model.loss(ids, ids).backward()
    return counts


print("all layers      ", count("all-linear"))
print("the last block  ", count(r".*layers\.3\..*_proj"))
print("one in the first", count(r".*layers\.0\.self_attn\.q_proj"))

# %% [markdown]
# - All: 25, not 28. Below the first block's q, k and v are only frozen embeddings; nobody asks for that gradient.
# - The last block: 4, its o, gate, up and down. Below its q, k and v there is nothing that is trained.
# - A single adapter at the very bottom: 25, as many as with all of them. The gradient must come down through three whole
#   blocks, and through the first one's o, gate, up and down. (q's own W is not needed, nor k's and v's.)
#
# Few trained parameters do not make a short backward pass. Their place does.
#
# ## Train it
#
# A base in float32 and one in NF4; the same adapters, the same 40 batches, in bfloat16. The task: from a function's header to
# JSON. **Before you run:** where will the two curves begin, and how far apart will they end?

# %%
my_guess = None

task = load_task("header_json")
collate = ml.DataCollatorForLanguageModeling(tokenizer)
batches = Batches(encode(tokenizer, task.train[:320], 320), 8, collate)
other = collate(encode(tokenizer, task.validation[:48], 320))  # from files not trained on


def train(four_bits, steps=40, rate=1e-2):
    """The model, and the loss on the other files at every fifth step."""
    model, _ = ml.load_model("embedded")
    if four_bits:
        ml.quantize_model(model, "nf4", double_quant=True)
    config = ml.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    model = ml.get_peft_model(model, config)
    optimizer, losses = AdamW(model.parameters(), rate, betas=(0.9, 0.99)), []
    for step in range(steps + 1):
        if step % 5 == 0:
            with ml.no_grad():
                loss = model.loss(other["input_ids"], other["labels"])
            losses.append((step, float(loss.data), np.nan))
        optimizer.lr = rate * (1 - step / steps)
        batch = batches.batch(step)
        with ml.autograd.autocast("bfloat16"):
            loss = model.loss(batch["input_ids"], batch["labels"])
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, losses


lines, models = {}, {}
for name, four_bits in (("float32 base", False), ("NF4 base", True)):
    models[name], lines[name] = train(four_bits)
    print(f"{name:<13} loss at first {lines[name][0][1]:.3f}   at the end {lines[name][-1][1]:.3f}")
curves(lines, "step", "loss on other files", "LoRA and QLoRA", log_y=True)

# %% [markdown]
# The NF4 base begins a little higher: rounding has cost something. The adapters learn the task on either. Whether the
# small difference at the end is more than chance, one run of 40 steps cannot tell; the study
# (`minilora experiment qlora-table3`) repeats it with several seeds.
#
# Did the base stay as it was? Each code, bit for bit:

# %%
def packed(model):
    layers = [m for _, m in model.named_modules() if isinstance(m, ml.nn.QuantizedLinear)]
    return [layer.quantized_weight for layer in layers]


fresh, _ = ml.load_model("embedded")
before = packed(ml.quantize_model(fresh, "nf4", double_quant=True))
after = packed(models["NF4 base"])
assert len(after) == 28 and all(q == p for q, p in zip(before, after, strict=True))
stored, numbers = sum(q.nbytes for q in after), sum(q.size for q in after)
print(f"28 linear layers: {stored:,} bytes; in float32 {4 * numbers:,}")
print(f"{8 * stored / numbers:.3f} bits a weight")

# %% [markdown]
# **Exercise.** Two layers as above, G = ∂E/∂Z. Give the gradients of the *first* layer's L₁ and L₂. W₁ is not among the
# arguments: why is it not needed?

# %%
from minilora.course.checks import lesson10 as checks


def first_adapter(G, X, L1, L2, W2, M1, M2, s):
    """Z = Y W2 + s Y M1 M2, Y = X W1 + s X L1 L2. Give (gradient of L1, gradient of L2)."""
    ...  # yours


checks.first_adapter.check(first_adapter)

# %% [markdown]
# **Exercise.** The input's gradient of one layer whose W is stored: `codes` (h, o) are indices into `levels`, and each
# block of 4 entries of W, flattened row by row, has its absmax.

# %%
def input_gradient(G, codes, absmax, levels, L1, L2, s):
    """G is (b, o). Give the gradient of X, (b, h)."""
    ...  # yours


checks.input_gradient.check(input_gradient)

# %% [markdown]
# **To take along**
# - Stored in NF4 with 8-bit scales, computed in bfloat16. W is dequantized forward and again backward.
# - Its codes are constants: no gradient, no optimizer state, and the zero derivative of rounding never comes up.
# - ∂E/∂L has no W of its own layer in it. The W's *above* it are in G; that is the way through the frozen weights.
# - An adapter near the input costs a long backward pass, however small it is.
# - The trained model is W dequantized, plus s L₁L₂. Rounding that sum to 4 bits again is another model (lesson 14).
#
# *T. Dettmers et al., QLoRA, arXiv:2305.14314, sections 2 and 3, equations 1 to 6. In minilora: `minilora/ops/linalg.py`
# (`linear_4bit`), `minilora/nn/layers.py` (`QuantizedLinear`), `minilora/lora/layers.py`, `minilora/quant/double.py`.*
