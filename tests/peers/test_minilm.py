"""Live comparison with transformers' BertModel: same weights, same tokens, same hidden states and embeddings."""

import json

import numpy as np
import pytest

from minilora import load_model, no_grad
from minilora.data.stdlib import source_files
from minilora.errors import FetchError
from minilora.models import fetch
from minilora.models.embed import embed, encode
from minilora.nn import BertModel, EncoderConfig

pytestmark = pytest.mark.peers
TEXTS = ["A man is eating food.", "A man is eating a piece of bread.", "", "The girl is carrying a baby.",
         "Ünïcode, 漢字 and numbers: 3.14e-7!", "LoRA keeps W₀ frozen and learns B A. " * 40]  # fmt: skip


@pytest.fixture
def minilm():
    """The fetched folder, or a skip that says how to get it."""
    try:
        return fetch.cached("minilm-l6")
    except FetchError as error:
        pytest.skip(str(error))


def peer(config: EncoderConfig, state: dict):
    """transformers' model with these weights; every parameter must find its name."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    reference = transformers.BertModel(transformers.BertConfig(**vars(config))).eval()
    reference.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()}, strict=True)
    return torch, reference


@pytest.mark.parametrize(("heads", "layers", "types"), [(1, 1, 1), (4, 3, 2)])
def test_random_weights(rng, heads, layers, types):
    config = EncoderConfig(50, 32, 72, layers, heads, max_position_embeddings=16, type_vocab_size=types)
    model = BertModel(config)
    for p in model.parameters():
        p.data = p.data + rng.standard_normal(p.shape, np.float32) * np.float32(0.2)
    torch, reference = peer(config, model.state_dict())
    ids, kinds = rng.integers(0, 50, (4, 16)), rng.integers(0, types, (4, 16))
    mask = np.arange(16) < np.array([[16], [9], [1], [15]])
    hidden = model(ids, mask, kinds)
    theirs = reference(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(kinds))
    np.testing.assert_allclose(hidden.data[mask], theirs.last_hidden_state.detach().numpy()[mask], atol=1e-4)
    np.testing.assert_allclose(model.pooler(hidden).data, theirs.pooler_output.detach().numpy(), atol=1e-4)

    g = rng.standard_normal(hidden.shape, np.float32) * mask[..., None]
    hidden.backward(g)
    theirs.last_hidden_state.backward(torch.from_numpy(g))
    expected = {name: p.grad for name, p in reference.named_parameters()}
    for name, p in model.named_parameters():
        if not name.startswith("pooler"):
            want = expected[name].numpy()
            np.testing.assert_allclose(p.grad, want, atol=1e-4 * max(1.0, np.abs(want).max()), err_msg=name)


def test_embeddings_of_the_real_model(minilm):
    model, tokenizer = load_model(minilm)
    torch, reference = peer(model.config, model.state_dict())
    rows = [[*tokenizer.begin(), *tokenizer.encode(text)[:254], tokenizer.eos_token_id] for text in TEXTS]
    ours = encode(model, tokenizer, TEXTS)
    assert ours.shape == (len(TEXTS), 384) and ours.dtype == np.float32 and len(rows[-1]) == 256
    for row, e in zip(rows, ours, strict=True):  # one by one: their side has no padding
        ids = np.array([row])
        with torch.no_grad(), no_grad():
            hidden = reference(torch.from_numpy(ids)).last_hidden_state
            np.testing.assert_allclose(model(ids).data, hidden.numpy(), atol=1e-4)
            mean = torch.nn.functional.normalize(hidden.mean(1))[0].numpy()
            np.testing.assert_allclose(embed(model, ids).data[0], mean, atol=1e-5)
        np.testing.assert_allclose(e, mean, atol=1e-5)
    cosines = ours @ ours.T
    assert cosines[0, 1] > 0.7 > 0.2 > cosines[0, 3]  # eating and eating; eating and carrying


def test_tokens_are_bert_s(minilm, tmp_path):
    """Against transformers' BertTokenizer, given the vocabulary only; texts that spell no special token."""
    transformers = pytest.importorskip("transformers")
    _, tokenizer = load_model(minilm)
    vocabulary = json.loads((minilm / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n", encoding="utf-8")
    reference = transformers.BertTokenizer.from_pretrained(str(tmp_path), do_lower_case=True)
    files = [f.text for f in source_files("held-out")][:40]
    for text in [*TEXTS, *files]:
        ids = [*tokenizer.begin(), *tokenizer.encode(text), tokenizer.eos_token_id]
        assert ids == reference(text)["input_ids"]
