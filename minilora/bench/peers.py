"""The same training steps in PyTorch and in transformers + PEFT, where they are installed (the peers extra)."""

import importlib.util

import numpy as np

from minilora.bench import train
from minilora.bench.timing import compare
from minilora.errors import MiniloraError
from minilora.lora import LoraConfig, get_peft_model
from minilora.models.registry import load_model
from minilora.train.optim import AdamW


def torch_gpt(vocab: int, hidden: int, layers: int, heads: int, length: int, lora: bool):
    """The benchmark's GPT in PyTorch eager, with its fused attention; returns a module ids -> logits."""
    import torch
    from torch import nn

    class LoRA(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.A, self.B = base, nn.Linear(hidden, 8, bias=False), nn.Linear(8, hidden, bias=False)
            nn.init.zeros_(self.B.weight)

        def forward(self, x):
            return self.base(x) + self.B(self.A(x)) * 2

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
            self.q, self.k, self.v, self.o = (nn.Linear(hidden, hidden) for _ in range(4))
            self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

        def forward(self, x):
            B, T, d = x.shape
            h = self.ln1(x)
            q, k, v = (f(h).view(B, T, heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.o(y.transpose(1, 2).reshape(B, T, d))
            return x + self.down(nn.functional.gelu(self.up(self.ln2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(vocab, hidden), nn.Embedding(length, hidden)
            self.blocks, self.norm = nn.ModuleList(Block() for _ in range(layers)), nn.LayerNorm(hidden)

        def forward(self, ids):
            x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.wte.weight.T

    torch.set_num_threads(1)
    model = GPT()
    nn.init.normal_(model.wte.weight, std=0.02)
    if lora:
        model.requires_grad_(False)
        for block in model.blocks:
            block.q, block.v = LoRA(block.q), LoRA(block.v)
    return model


def torch_step(model, ids: np.ndarray):
    """A function that makes one training step of a torch module, ids -> logits or an object with .logits."""
    import torch

    tokens = torch.from_numpy(ids)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    def step():
        optimizer.zero_grad(set_to_none=True)
        out = model(tokens[:, :-1])
        logits = getattr(out, "logits", out)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()

    return step


def our_step(model, ids: np.ndarray):
    optimizer = AdamW(model.parameters(), 1e-6)

    def step():
        optimizer.zero_grad()
        model.loss(ids, ids).backward()
        optimizer.step()

    return step


def smollm2_ratio() -> float:
    """A LoRA step (q, v, r=8) at batch 4 x 128 on SmolLM2's float weights, minilora / transformers + PEFT."""
    import peft
    import torch
    import transformers

    torch.set_num_threads(1)
    model, _ = load_model("smollm2-135m")
    c = model.config
    fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
              "num_key_value_heads", "rope_theta")  # fmt: skip
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **{name: getattr(c, name) for name in fields}, rms_norm_eps=c.norm_eps, tie_word_embeddings=True
        )
    )
    weights = {name: torch.from_numpy(array.copy()) for name, array in model.state_dict().items()}
    reference.load_state_dict(weights, strict=False)
    targets = ["q_proj", "v_proj"]
    ours = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    theirs = peft.get_peft_model(reference, peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    ids = np.random.default_rng(0).integers(0, c.vocab_size, (4, 129))
    return compare(our_step(ours, ids), torch_step(theirs, ids), rounds=3)


def main():
    """Print the ratios that can be measured, and what is missing for the others."""
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"PyTorch, transformers + PEFT: not measured, {', '.join(missing)} missing (pip install 'minilora[peers]')"
        )
        return
    import torch

    print(f"training step, minilora / PyTorch {torch.__version__} eager (its BLAS may be MKL, slow on AMD):")
    for hidden, layers in ((256, 6), (512, 8)):
        for lora in (False, True):
            model = train.gpt(hidden, layers)
            if lora:
                model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
            ids = np.random.default_rng(0).integers(0, train.VOCAB, (train.BATCH, train.LENGTH + 1))
            other = torch_gpt(train.VOCAB, hidden, layers, train.HEADS, train.LENGTH, lora)
            ratio = compare(our_step(model, ids), torch_step(other, ids), rounds=3)
            print(f"  d{hidden} L{layers} {'LoRA q,v r=8' if lora else 'full':<14}{ratio:6.3f}", flush=True)
    try:
        print(f"SmolLM2 LoRA step, batch 4 x 128, minilora / transformers + PEFT:{smollm2_ratio():6.3f}", flush=True)
    except MiniloraError as error:
        print(f"SmolLM2 LoRA step: not measured ({error})")
