import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import no_grad
from minilora.errors import FileFormatError, MiniloraError
from minilora.models import checkpoint
from minilora.models.gguf import TENSOR_TYPES, read_gguf, write_gguf
from minilora.nn import CausalLM, TransformerConfig

NAMES = {v: k for k, v in checkpoint.GGUF_NAMES.items()}


def write_model(path, **changes):
    """A tiny LLaMA as GGUF, rows of q and k interleaved as the format has them; returns the model."""
    model = CausalLM(TransformerConfig(260, 16, 24, 2, 4, 2, max_position_embeddings=32, rope_theta=100.0))
    tensors = {}
    for name, array in model.state_dict().items():
        if name == "model.embed_tokens.weight":
            tensors["token_embd.weight"] = array
        elif name == "model.norm.weight":
            tensors["output_norm.weight"] = array
        else:
            _, _, layer, part = name.split(".", 3)
            part = part.removesuffix(".weight")
            heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(part)
            if heads:
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            tensors[f"blk.{layer}.{checkpoint.GGUF_NAMES[part]}.weight"] = array
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    metadata = {
        "general.architecture": "llama", "llama.embedding_length": 16, "llama.feed_forward_length": 24,
        "llama.block_count": 2, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.context_length": 32, "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 100.0,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.eos_token_id": 259,
        "tokenizer.ggml.tokens": [*alphabet, "ab", "12", "x", "<|end|>"][:260],
        "tokenizer.ggml.merges": ["a b", "1 2"],
    }  # fmt: skip
    metadata["tokenizer.ggml.tokens"][258] = "<unused>"
    write_gguf(path, metadata | changes, tensors)
    return model


def test_a_model_round_trip(tmp_path, rng):
    model = write_model(tmp_path / "m.gguf")
    again, tokenizer = checkpoint.load_gguf(tmp_path / "m.gguf")
    ids = rng.integers(0, 260, (2, 8))
    with no_grad():
        np.testing.assert_allclose(again(ids).data, model(ids).data, atol=1e-6)
    assert tokenizer.decode(tokenizer.encode("ab é 12\n")) == "ab é 12\n"
    assert len(tokenizer.encode("ab")) == 1 and len(tokenizer.encode("12")) == 2  # digits are split before merging


@pytest.mark.parametrize("kind", TENSOR_TYPES)
def test_each_tensor_type_against_its_definition(rng, kind):
    name, values, size, dequantize = TENSOR_TYPES[kind]
    if values == 1:
        x = rng.standard_normal(8).astype(np.float32)
        raw = {"F32": x, "F16": x.astype(np.float16), "BF16": (x.view(np.uint32) >> 16).astype(np.uint16)}[name]
        expected = (x.view(np.uint32) >> 16 << 16).view(np.float32) if name == "BF16" else raw.astype(np.float32)
        np.testing.assert_array_equal(dequantize(raw.view(np.uint8)), expected)
        return
    blocks = rng.integers(0, 256, (3, size), np.uint8)
    scales = np.array([[0.5, -1.5], [2.0, 0.25], [1e-3, 3.0]], np.float16)
    head = 4 if name == "Q4_1" else 2
    blocks[:, :head] = scales[:, : head // 2].copy().view(np.uint8)
    expected = np.empty((3, 32), np.float32)
    for b in range(3):
        d, m = map(float, scales[b])
        q = blocks[b, head:]
        for i in range(32):
            if name == "Q8_0":
                expected[b, i] = d * int(q[i].view(np.int8))
            else:
                nibble = int(q[i % 16]) >> 4 if i >= 16 else int(q[i]) & 15
                expected[b, i] = d * nibble + m if name == "Q4_1" else d * (nibble - 8)
    np.testing.assert_allclose(dequantize(blocks.ravel()).reshape(3, 32), expected, rtol=1e-6)


def test_every_header_field_spoilt(tmp_path):
    """Each byte of the header set to 0, 255 and flipped: a clear error or a readable file, nothing else."""
    path = tmp_path / "m.gguf"
    write_gguf(
        path, {"general.architecture": "llama", "n": 3, "names": ["a", "b"]}, {"t": np.ones((2, 32), np.float32)}
    )
    raw = path.read_bytes()
    for at in range(len(raw) - 256):
        for value in (0, 255, raw[at] ^ 1, raw[at] ^ 128):
            path.write_bytes(raw[:at] + bytes([value]) + raw[at + 1 :])
            try:
                _, tensors = read_gguf(path)
                assert sum(load().nbytes for load in tensors.values()) <= 64 * len(raw)
            except FileFormatError as error:
                assert "m.gguf" in str(error)


@given(st.data())
def test_a_damaged_model_gives_our_error_only(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    write_model(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 3500))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2, 100, 3, 0]))])
    try:
        checkpoint.load_gguf(path)
    except MiniloraError as error:
        assert str(error)


def test_endless_lengths_are_refused_before_allocating(tmp_path):
    path = tmp_path / "m.gguf"
    for head in (
        struct.pack("<IQQ", 3, 2**60, 0),
        struct.pack("<IQQ", 3, 0, 2**60),
        struct.pack("<IQQQ", 3, 0, 1, 2**62),
        struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**61),
        struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**61),
    ):
        path.write_bytes(b"GGUF" + head + b"\0" * 64)
        with pytest.raises(FileFormatError, match="not a whole GGUF"):
            read_gguf(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba'; 'llama' can be read"),
        ({"llama.embedding_length": 20}, "cannot be built|has shape"),
        ({"llama.block_count": 3}, "lacks tensor 'blk.2"),
        ({"llama.attention.head_count_kv": 3}, "cannot be built: num_attention_heads"),
        ({"tokenizer.ggml.pre": "other"}, "pre-tokenizer 'other' is not known"),
        ({"tokenizer.ggml.eos_token_id": 999}, "eos_token_id is 999"),
        ({"llama.rope.freq_base": "x"}, "freq_base is 'x'"),
    ],
)
def test_models_that_do_not_fit(tmp_path, changes, message):
    write_model(tmp_path / "m.gguf", **changes)
    with pytest.raises(FileFormatError, match=message):
        checkpoint.load_gguf(tmp_path / "m.gguf")


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_gguf(tmp_path / "none.gguf")
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4" + b"\0" * 100)
    with pytest.raises(FileFormatError, match="does not begin with 'GGUF'"):
        read_gguf(tmp_path / "x.gguf")
