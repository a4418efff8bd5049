"""Makes tests/golden/families: for each family a tiny model of random weights (float16), and transformers' logits (of
BERT, hidden states).

    python tests/golden/make_families.py        # needs torch and transformers

The figures come from the seeds below alone. They were made with torch 2.13.0 and transformers 5.24.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parent / "families"
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip
LLAMA = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}  # fmt: skip
GPT2 = {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
MARIAN = {"vocab_size": 32, "d_model": 16, "max_position_embeddings": 32, "activation_function": "relu",
          "scale_embedding": True, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1,
          "forced_eos_token_id": None} | {
    f"{half}_{name}": n for half in ("encoder", "decoder")
    for name, n in (("layers", 2), ("ffn_dim", 24), ("attention_heads", 4))
}  # fmt: skip
MODELS = {
    "llama": ("LlamaForCausalLM", LLAMA | {"head_dim": 8, "rope_parameters": LLAMA3}),
    "mistral": ("MistralForCausalLM", LLAMA | {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", LLAMA | {"tie_word_embeddings": True}),
    "gpt2": ("GPT2LMHeadModel", GPT2 | {"n_inner": 24}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", GPT2),
    "bloom": ("BloomForCausalLM", {"vocab_size": 32, "hidden_size": 18, "n_layer": 2, "n_head": 3}),
    "bert": ("BertModel", {key: n for key, n in LLAMA.items() if key != "num_key_value_heads"}),
    "marian": ("MarianMTModel", MARIAN),
}


def make(name: str, kind: str, fields: dict):
    cls = getattr(transformers, kind)
    torch.manual_seed(0)
    model = cls(cls.config_class(**fields)).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "embed_positions" not in key:  # else norms and biases would stay at 1 and 0
                p.copy_((p + 0.2 * torch.randn(p.shape)).half().float())
        ids = torch.from_numpy(np.random.default_rng(0).integers(1, 32, (2, 20)))
        inputs = {"input_ids": ids}
        if name == "marian":
            ids[0, 15:] = 0  # padding
            inputs |= {"attention_mask": ids != 0, "decoder_input_ids": ids.flip(1)[:, :12]}
        output = model(**inputs)
        logits = (output.last_hidden_state if name == "bert" else output.logits).numpy()
    model.half().save_pretrained(FOLDER / name)
    (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
    arrays = {key: inputs[key].numpy() for key in inputs.keys() - {"attention_mask"}}
    np.savez_compressed(FOLDER / name / "reference_logits.npz", logits=logits, **arrays)


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, (kind, fields) in MODELS.items():
        make(name, kind, fields)
