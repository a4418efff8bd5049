"""How good a model is on a dataset, without gradients: by its loss, or by the answers that it writes.

evaluate(model, examples)                                      # loss, perplexity, exact match on the targets
evaluate_answers(model, tokenizer, prompts, references)        # exact match and ROUGE of generated text
"""

import math
from collections.abc import Iterator

import numpy as np

from minilora.autograd import no_grad
from minilora.backend import to_numpy
from minilora.data.collate import DataCollatorForLanguageModeling
from minilora.errors import DataError
from minilora.models.generate import generate_batch
from minilora.ops import cross_entropy
from minilora.train.rouge import rouge


def evaluate(model, dataset, batch_size: int = 32, collator=None) -> dict[str, float]:
    """{"loss": nats per target token, "perplexity": its exponential, "exact_match": share of examples, "tokens":
    targets}.

    An example matches when the likeliest token is right at every target, the end of text included, given the right
    tokens before it: which is when greedy generation gives the whole answer. (Of packed rows, a row is an example.)
    """
    loss, tokens, matches = 0.0, 0, len(dataset)
    for batch_loss, right, rows in predictions(model, dataset, batch_size, collator):
        loss += batch_loss
        tokens += len(right)
        matches -= len(np.unique(rows[~right]))
    loss /= tokens
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {"loss": loss, "perplexity": perplexity, "exact_match": matches / len(dataset), "tokens": tokens}


def predictions(model, dataset, batch_size: int = 32, collator=None) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """Of each batch: the loss, summed over its target tokens; of each target, whether it is the likeliest token given
    the right ones before it; and the row of the batch that it is in. Raises DataError for an empty dataset."""
    if not len(dataset):
        raise DataError("the evaluation set is empty")
    collator = collator or DataCollatorForLanguageModeling()
    order = sorted(range(len(dataset)), key=lambda i: len(dataset[i]["input_ids"]))  # similar lengths, little padding
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            batch = collator([dataset[i] for i in order[start : start + batch_size]])
            inputs = {n: batch[n] for n in ("input_ids", "labels", "segment_ids") if n in batch}
            with no_grad():
                logits, rows, targets = model.target_logits(**inputs)
                loss = cross_entropy(logits, targets, reduction="sum").item()
            yield loss, to_numpy(logits.data.argmax(-1)) == targets, rows
    finally:
        model.train(was_training)


def evaluate_answers(
    model, tokenizer, prompts: list[str], references: list[list[str]], max_new_tokens: int, batch_size: int = 16,
    parse_special: bool = False,
) -> dict:  # fmt: skip
    """{"exact_match", "rouge1", "rouge2", "rougeL"}, means over the examples, of the likeliest answers; "answers": they
    themselves. references: of each prompt all right answers; the best one counts. A match is equal but for white space
    around it.
    """
    if not prompts:
        raise DataError("the evaluation set is empty")
    was_training = model.training
    model.eval()
    try:
        answers = generate_batch(
            model, tokenizer, prompts, max_new_tokens, parse_special=parse_special, batch_size=batch_size
        )
    finally:
        model.train(was_training)
    pairs = list(zip(answers, references, strict=True))
    scores = [[rouge(answer, right) for right in rights] for answer, rights in pairs]
    matches = sum(answer.strip() in [right.strip() for right in rights] for answer, rights in pairs)
    means = {name: sum(max(s[name] for s in each) for each in scores) / len(pairs) for name in scores[0][0]}
    return {"exact_match": matches / len(answers), **means, "answers": answers}
