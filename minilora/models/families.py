"""Model families: Hugging Face's config.json to our configuration and back, for each architecture that we have.

    family = find_family(fields)              # fields of config.json: {"model_type": "gpt2", "n_embd": 768, ...}
    model = family.model(family.read(fields))
    model.load_state_dict(family.tensors(arrays, model.config))
    family = family_of(model)                 # and the way back
    fields = family.write(model.config)

A field that would change the result and is not implemented is an error that names it. Dropouts of training are read and
written; other fields about training (initializer_range, Marian's activation_dropout) or about how to compute the same
numbers (use_cache, attention_softmax_in_fp32) are left aside.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minilora.errors import ConfigError
from minilora.nn.bloom import Bloom
from minilora.nn.encoder import BertModel, EncoderConfig
from minilora.nn.gpt2 import GPT2, GPTBigCode
from minilora.nn.language_model import ModelConfig
from minilora.nn.module import Module
from minilora.nn.positions import RopeScaling
from minilora.nn.seq2seq import Seq2Seq, Seq2SeqConfig
from minilora.nn.transformer import CausalLM, TransformerConfig


@dataclass(frozen=True)
class Family:
    architecture: str  # Hugging Face's class
    model: type[Module]  # ours; its parameters have Hugging Face's names
    embedding: str  # name of the tensor
    read: Callable[[dict], ModelConfig]  # raises ConfigError
    write: Callable[[ModelConfig], dict]
    part: str = ""  # what files of a larger model, of which ours is a part that is read, put before its names

    def tensors(self, arrays: dict[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
        """A file's tensors by our names. Raises ConfigError for two that should be one and are not.

        Files of a model without its head lack the first part of the names; old ones hold masks and frequencies, which
        are no weights, or call a norm's weight and bias gamma and beta; some repeat the embedding under the names of
        what is tied to it.
        """
        buffers = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq", ".embed_positions.weight",
                   ".position_ids")  # fmt: skip
        arrays = {name: array for name, array in arrays.items() if not f".{name}".endswith(buffers)}
        if self.part and any(name.startswith(self.part) for name in arrays):
            arrays = {name.removeprefix(self.part): a for name, a in arrays.items() if name.startswith(self.part)}
        for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
            arrays = {name.removesuffix(old) + new * name.endswith(old): array for name, array in arrays.items()}
        prefix = self.embedding.split(".")[0] + "."
        if not any(name.startswith(prefix) for name in arrays):
            arrays = {name if name == "lm_head.weight" else prefix + name: array for name, array in arrays.items()}
        if getattr(config, "tie_word_embeddings", False):
            tied = [n for n in arrays if n == "lm_head.weight" or n.endswith("coder.embed_tokens.weight")]
            for name in tied:
                if not np.array_equal(arrays.pop(name), arrays.get(self.embedding)):
                    raise ConfigError(f"tie_word_embeddings is true, but {name} is not {self.embedding}")
        if not np.any(arrays.get("final_logits_bias", True)):  # Marian's, by default 0
            arrays.pop("final_logits_bias")
        return arrays


def _only(fields: dict, **implemented):
    """Refuse a field that has another value than the one that is implemented; without a value it has the default."""
    for name, value in implemented.items():
        if fields.get(name) not in (value, None):
            raise ConfigError(f"{name} = {fields[name]!r} is not implemented; {value!r} is")


def _names(*same: str, **renamed: str) -> dict[str, str]:
    """Our field -> the family's."""
    return {name: name for name in same} | renamed


_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu",
                "relu": "relu"}  # fmt: skip
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def _take(fields: dict, names: dict[str, str], **defaults) -> dict:
    """Our fields from the family's, which files may also give by our names. defaults: where the file says nothing."""
    found = {ours: fields.get(theirs, fields.get(ours)) for ours, theirs in names.items()}
    found = defaults | {ours: value for ours, value in found.items() if value is not None}
    if missing := [names.get(ours, ours) for ours in _NEEDED if found.get(ours) is None]:
        raise ConfigError(f"config.json lacks {', '.join(missing)}")
    if "activation" in found:
        if found["activation"] not in _ACTIVATIONS:
            kinds = ", ".join(_ACTIVATIONS)
            raise ConfigError(f"{names['activation']} = {found['activation']!r} is not implemented; {kinds} are")
        found["activation"] = _ACTIVATIONS[found["activation"]]
    return found


def _give(config: ModelConfig, names: dict[str, str]) -> dict:
    """The family's fields from ours."""
    given = {theirs: getattr(config, ours) for ours, theirs in names.items()}
    return {name: "gelu_new" if value == "gelu_tanh" else value for name, value in given.items()}


# LLaMA, Mistral, Qwen2

_LLAMA = _names(*_NEEDED, "num_key_value_heads", "head_dim", "max_position_embeddings", "tie_word_embeddings",
                "attention_dropout", norm_eps="rms_norm_eps")  # fmt: skip


def _rope(fields: dict) -> dict:
    """rope_theta and rope_scaling, from files of transformers 5 (rope_parameters) or of earlier versions."""
    rope = (fields.get("rope_parameters") or {}) | (fields.get("rope_scaling") or {})
    _only(fields | rope, partial_rotary_factor=1.0)
    theta = fields.get("rope_theta") or rope.get("rope_theta", 10000.0)
    kind = rope.get("rope_type", rope.get("type")) or "default"
    if kind == "default":
        return {"rope_theta": theta}
    if kind not in ("linear", "llama3"):
        raise ConfigError(f"rope_scaling of rope_type {kind!r} is not implemented; default, linear and llama3 are")
    needed = ["factor"] if kind == "linear" else [f.name for f in dataclasses.fields(RopeScaling)[1:]]
    if missing := [name for name in needed if name not in rope]:
        raise ConfigError(f"rope_scaling lacks {', '.join(missing)}")
    return {"rope_theta": theta, "rope_scaling": RopeScaling(kind, **{name: rope[name] for name in needed})}


def _no_window(fields: dict, window: int | None):
    """A sliding window at least as long as the longest text changes nothing."""
    if window is not None and window < fields.get("max_position_embeddings", 2048):
        raise ConfigError(
            f"sliding_window = {window} is not implemented; with max_position_embeddings = {window} in config.json the "
            "model can be used for texts that fit into its window"
        )


def _read_llama(fields: dict, bias: bool | str | None = None, **defaults) -> TransformerConfig:
    _only(fields, hidden_act="silu")
    if bias is None:
        bias = "attention" if fields.get("attention_bias") else False
        if fields.get("mlp_bias"):
            if not bias:
                raise ConfigError("mlp_bias = True without attention_bias is not implemented")
            bias = True
    defaults = {"norm_eps": 1e-6, "tie_word_embeddings": False, "bias": bias} | _rope(fields) | defaults
    return TransformerConfig(**_take(fields, _LLAMA, **defaults))


def _write_llama(config: TransformerConfig) -> dict:
    rope = dataclasses.asdict(config.rope_scaling) if config.rope_scaling else None
    return _give(config, _LLAMA) | {
        "hidden_act": "silu", "rope_theta": config.rope_theta, "rope_scaling": rope,
        "attention_bias": config.bias in (True, "attention"), "mlp_bias": config.bias in (True,),
    }  # fmt: skip


def _read_mistral(fields: dict) -> TransformerConfig:
    _no_window(fields, fields.get("sliding_window", 4096))
    return _read_llama(fields, bias=False, num_key_value_heads=8)


def _read_qwen2(fields: dict) -> TransformerConfig:
    _no_window(fields, fields.get("sliding_window", 4096) if fields.get("use_sliding_window") else None)
    return _read_llama(fields, bias="qkv")


# GPT-2, GPTBigCode

_GPT2 = _names("vocab_size", "tie_word_embeddings", hidden_size="n_embd", intermediate_size="n_inner",
               num_hidden_layers="n_layer", num_attention_heads="n_head", max_position_embeddings="n_positions",
               norm_eps="layer_norm_epsilon", activation="activation_function", dropout="resid_pdrop",
               attention_dropout="attn_pdrop", embedding_dropout="embd_pdrop")  # fmt: skip
_PDROP = {"dropout": 0.1, "attention_dropout": 0.1, "embedding_dropout": 0.1}  # of files that do not say


def _read_gpt2(fields: dict) -> ModelConfig:
    _only(fields, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    d = fields.get("n_embd", fields.get("hidden_size"))
    return ModelConfig(**_take(fields, _GPT2, intermediate_size=d and 4 * d, max_position_embeddings=1024, **_PDROP))


def _write_gpt2(config: ModelConfig) -> dict:
    return _give(config, _GPT2)


def _read_bigcode(fields: dict) -> ModelConfig:
    _only(fields, multi_query=True)
    return dataclasses.replace(_read_gpt2(fields), num_key_value_heads=1)


# BLOOM

_BLOOM = _names("vocab_size", "hidden_size", "tie_word_embeddings", "attention_dropout", num_hidden_layers="n_layer",
                num_attention_heads="n_head", max_position_embeddings="seq_length",
                norm_eps="layer_norm_epsilon", dropout="hidden_dropout")  # fmt: skip


def _read_bloom(fields: dict) -> ModelConfig:
    _only(fields, apply_residual_connection_post_layernorm=False)
    d = fields.get("n_embed", fields.get("hidden_size"))
    return ModelConfig(**_take(fields | {"hidden_size": d}, _BLOOM, intermediate_size=d and 4 * d))


def _write_bloom(config: ModelConfig) -> dict:
    return _give(config, _BLOOM)


# BERT, an encoder

_BERT = _names(*_NEEDED, "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "hidden_dropout_prob",
               "attention_probs_dropout_prob")  # fmt: skip


def _read_bert(fields: dict) -> EncoderConfig:
    _only(fields, hidden_act="gelu", position_embedding_type="absolute", is_decoder=False)
    return EncoderConfig(**_take(fields, _BERT, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1))


def _write_bert(config: EncoderConfig) -> dict:
    return _give(config, _BERT) | {"hidden_act": "gelu"}


# The encoder-decoder of 2017

_MARIAN = _names("vocab_size", "tie_word_embeddings", "max_position_embeddings", "pad_token_id", "dropout",
                 "attention_dropout", hidden_size="d_model", intermediate_size="encoder_ffn_dim",
                 num_hidden_layers="encoder_layers", num_attention_heads="encoder_attention_heads",
                 activation="activation_function")  # fmt: skip
_HALVES = ("layers", "ffn_dim", "attention_heads")


def _read_marian(fields: dict) -> Seq2SeqConfig:
    _only({"scale_embedding": False} | fields, scale_embedding=True, share_encoder_decoder_embeddings=True)
    _only(fields, decoder_start_token_id=fields.get("pad_token_id"), decoder_vocab_size=fields.get("vocab_size"))
    _only(fields, **{f"decoder_{name}": fields.get(f"encoder_{name}") for name in _HALVES})
    defaults = {"activation": "gelu", "max_position_embeddings": 1024, "pad_token_id": 58100, "dropout": 0.1}
    return Seq2SeqConfig(**_take(fields, _MARIAN, **defaults))


def _write_marian(config: Seq2SeqConfig) -> dict:
    fields = _give(config, _MARIAN) | {"scale_embedding": True, "decoder_start_token_id": config.pad_token_id}
    return fields | {f"decoder_{name}": fields[f"encoder_{name}"] for name in _HALVES}


FAMILIES = {  # model_type -> Family
    "llama": Family("LlamaForCausalLM", CausalLM, "model.embed_tokens.weight", _read_llama, _write_llama),
    "mistral": Family("MistralForCausalLM", CausalLM, "model.embed_tokens.weight", _read_mistral, _write_llama),
    "qwen2": Family("Qwen2ForCausalLM", CausalLM, "model.embed_tokens.weight", _read_qwen2, _write_llama),
    "gpt2": Family("GPT2LMHeadModel", GPT2, "transformer.wte.weight", _read_gpt2, _write_gpt2),
    "gpt_bigcode": Family("GPTBigCodeForCausalLM", GPTBigCode, "transformer.wte.weight", _read_bigcode, _write_gpt2),
    "bloom": Family("BloomForCausalLM", Bloom, "transformer.word_embeddings.weight", _read_bloom, _write_bloom),
    "bert": Family("BertModel", BertModel, "embeddings.word_embeddings.weight", _read_bert, _write_bert, "bert."),
    "marian": Family("MarianMTModel", Seq2Seq, "model.shared.weight", _read_marian, _write_marian),
}


def find_family(fields: dict) -> Family:
    """The family that config.json's model_type names. Raises ConfigError."""
    kind = fields.get("model_type", "llama")
    if kind not in FAMILIES:
        raise ConfigError(f"model_type {kind!r} is not implemented; {', '.join(FAMILIES)} are")
    return FAMILIES[kind]


def family_of(model: Module) -> tuple[str, Family]:
    """The model_type and family in whose files a model can be written: reading them back must give its configuration.

    Raises ConfigError naming the fields that a family's config.json cannot express.
    """
    fits = {kind: family for kind, family in FAMILIES.items() if family.model is type(model)}
    if not fits:
        raise ConfigError(f"a {type(model).__name__} is of no family with a file format; {', '.join(FAMILIES)} are")
    lost = {}
    for kind, family in fits.items():
        again = family.read(family.write(model.config))
        lost[kind] = [f.name for f in dataclasses.fields(again)
                      if f.compare and getattr(again, f.name) != getattr(model.config, f.name)]  # fmt: skip
        if not lost[kind]:
            return kind, family
    kind = next(iter(lost))
    given = ", ".join(f"{name} = {getattr(model.config, name)!r}" for name in lost[kind])
    raise ConfigError(f"{given}: a config.json of {kind} cannot say so, and the saved model would be another")
