"""BERT folders and sentence embeddings, on a small model made here."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import load_model
from minilora.errors import DataError, FileFormatError
from minilora.files import load_safetensors, save_safetensors
from minilora.models.embed import encode
from minilora.nn import BertModel, EncoderConfig

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "is", "eat", "##ing", "##s", ".", "[", "]", "sep"]
FIELDS = {"model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24,
          "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 12, "hidden_act": "gelu",
          "hidden_dropout_prob": 0.1}  # fmt: skip


def wordpiece() -> str:
    """A tokenizer.json of BERT's kind, which asks to cut and pad texts as MiniLM's file does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=10)
    return tokenizer.to_str()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as Hugging Face writes it."""
    path = tmp_path_factory.mktemp("bert")
    config = EncoderConfig(len(WORDS), 16, 24, 2, 4, max_position_embeddings=12)
    rng, arrays = np.random.default_rng(0), BertModel(config).state_dict()
    arrays = {n: a + rng.standard_normal(a.shape, np.float32) * np.float32(0.2) for n, a in arrays.items()}
    arrays["embeddings.position_ids"] = np.arange(12)[None]
    save_safetensors(path / "model.safetensors", arrays, {"format": "pt"})
    (path / "config.json").write_text(json.dumps(FIELDS))
    (path / "tokenizer.json").write_text(wordpiece())
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(folder)


def test_a_folder_becomes_its_model(folder, loaded):
    model, tokenizer = loaded
    arrays = load_safetensors(folder / "model.safetensors")[0]
    assert model.config == EncoderConfig(len(WORDS), 16, 24, 2, 4, max_position_embeddings=12)
    assert set(model.state_dict()) == arrays.keys() - {"embeddings.position_ids"}
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, arrays[name])
    assert not any(m.training for _, m in model.named_modules())
    words = [tokenizer.token(i) for i in tokenizer.encode("A CAT is eatíng dogs. [SEP] bird")]
    assert words == ["a", "cat", "is", "eat", "##ing", "dog", "##s", ".", "[", "sep", "]", "[UNK]"]
    assert tokenizer.begin() == [2] and tokenizer.eos_token_id == 3


def test_a_folder_without_a_tokenizer(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert load_model(tmp_path)[1] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": "wide"}, "cannot be built: hidden_size must be a positive integer"),
        ({"num_attention_heads": 3}, "cannot be built"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not implemented; 'gelu' is"),
        ({"position_embedding_type": "relative_key"}, "'absolute' is"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_hidden_layers": 1}, r"16 tensors that the model lacks, the first 'encoder\.layer\.1"),
        ({"num_hidden_layers": 3}, r"lacks tensor 'encoder\.layer\.2"),
        ({"type_vocab_size": 3}, r"token_type_embeddings\.weight' has shape \(2, 16\); .* asks for \(3, 16\)"),
        ({"vocab_size": 10**12}, r"impossible model: \d+ weights, of which it holds"),
        ({"num_hidden_layers": 10**9}, r"impossible model: \d+ weights"),
        ({"max_position_embeddings": 10**15}, "impossible model"),
    ],
)
def test_folders_that_do_not_fit(folder, tmp_path, change, message):
    fields = {k: v for k, v in (FIELDS | change).items() if v is not None}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(FileFormatError, match=message) as error:
        load_model(tmp_path)
    assert str(tmp_path) in str(error.value)


texts = st.lists(
    st.lists(st.sampled_from(["a", "cat", "Dog", "is", "eating", "."]), max_size=9).map(" ".join), max_size=7
)


@given(texts, st.integers(1, 4), st.randoms(use_true_random=False))
def test_batches_and_order_do_not_change_embeddings(loaded, texts, batch_size, random):
    whole = encode(*loaded, texts, max_length=12)
    assert whole.dtype == np.float32 and whole.shape == (len(texts), 16)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-6)
    order = random.sample(range(len(texts)), len(texts))
    again = encode(*loaded, [texts[i] for i in order], batch_size=batch_size, max_length=12)
    np.testing.assert_allclose(again, whole[order], atol=1e-5)


def test_long_texts_are_cut(loaded):
    long = encode(*loaded, ["cat dog is a cat eating dogs"], max_length=6)
    np.testing.assert_allclose(long, encode(*loaded, ["cat dog is a"], max_length=12), atol=1e-6)


def test_wrong_arguments(loaded):
    with pytest.raises(DataError, match=r"for a single text pass \[text\]"):
        encode(*loaded, "a cat", max_length=12)
    for length in (1, 13):
        with pytest.raises(DataError, match=f"max_length is {length}; the model takes 2 to 12"):
            encode(*loaded, ["a cat"], max_length=length)
