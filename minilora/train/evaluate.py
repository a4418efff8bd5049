"""Loss and exact match on a dataset, without gradients."""

import math

import numpy as np

from minilora.autograd import no_grad
from minilora.backend import to_numpy
from minilora.data.collate import DataCollatorForLanguageModeling
from minilora.errors import DataError
from minilora.ops import cross_entropy


def evaluate(model, dataset, batch_size: int = 32, collator=None) -> dict[str, float]:
    """{"loss": nats per target token, "perplexity": its exponential, "exact_match": share of examples, "tokens":
    targets}.

    An example matches when the likeliest token is right at every target, the end of text included, given the right
    tokens before it: which is when greedy generation gives the whole answer. (Of packed rows, a row is an example.)
    """
    if not len(dataset):
        raise DataError("the evaluation set is empty")
    collator = collator or DataCollatorForLanguageModeling()
    order = sorted(range(len(dataset)), key=lambda i: len(dataset[i]["input_ids"]))  # similar lengths, little padding
    was_training, loss, tokens, matches = model.training, 0.0, 0, 0
    model.eval()
    try:
        with no_grad():
            for start in range(0, len(order), batch_size):
                batch = collator([dataset[i] for i in order[start : start + batch_size]])
                inputs = {n: batch[n] for n in ("input_ids", "labels", "segment_ids") if n in batch}
                logits, rows, targets = model.target_logits(**inputs)
                loss += cross_entropy(logits, targets, reduction="sum").item()
                tokens += len(targets)
                wrong = np.unique(rows[to_numpy(logits.data.argmax(-1)) != targets])
                matches += len(batch["input_ids"]) - len(wrong)
    finally:
        model.train(was_training)
    loss /= tokens
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {"loss": loss, "perplexity": perplexity, "exact_match": matches / len(dataset), "tokens": tokens}
