"""A batch as text, to see what a model is trained on: which tokens are targets, what is padding, where examples end.

print(show_batch(batch, tokenizer, colour=True))

A wrong mask is the most common mistake in fine-tuning and shows in no loss curve; here it shows at once.
"""

import numpy as np

from minilora.data.formats import IGNORE

_STYLES = {"prompt": "\x1b[2m", "target": "\x1b[1;32m", "padding": "\x1b[34m", "end": "\x1b[0m"}
_PLAIN = {"prompt": "", "target": "", "padding": "", "end": ""}


def show_batch(batch: dict[str, np.ndarray], tokenizer, colour: bool = True) -> str:
    """batch: as a collator makes it. Targets are green in 【】, padding is counted; │ separates packed examples.

    A token is a target where its label is not -100 and it is not the first of its row: nothing comes before that.
    """
    style = _STYLES if colour else _PLAIN
    lines = []
    segments = batch.get("segment_ids")
    mask = batch.get("attention_mask", None if segments is None else segments > 0)
    for row, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        real = np.ones(len(ids), bool) if mask is None else mask[row].astype(bool)
        target = (labels != IGNORE) & real
        target[0] = False
        parts, a = [], 0
        numbers = np.where(real, 1 if segments is None else segments[row], 0)
        while a < len(ids):
            b = a + 1
            while b < len(ids) and (numbers[b], target[b]) == (numbers[a], target[a]):
                b += 1
            if a and numbers[a] and numbers[a] != numbers[a - 1]:
                parts.append("│")
            if not numbers[a]:
                parts.append(f"{style['padding']}[{b - a} of padding]{style['end']}")
            elif target[a]:
                parts.append(f"{style['target']}【{tokenizer.decode(ids[a:b])}】{style['end']}")
            else:
                parts.append(f"{style['prompt']}{tokenizer.decode(ids[a:b])}{style['end']}")
            a = b
        lines.append(f"--- row {row}: {int(target.sum())} targets of {int(real.sum())} tokens\n{''.join(parts)}")
    return "\n".join(lines)
