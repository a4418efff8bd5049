"""Sample packing: several examples in one row, each of them trained as if it were alone.

    for row in pack(lengths, 512): ...                      # which examples share a row
    join([examples[i] for i in row], 512)                   # input_ids, labels, position_ids, segment_ids

Short examples waste most of a padded batch. Packed, a row holds several, one after another, and stays right only if no
token sees another example (a block-diagonal mask, from segment_ids), positions begin anew in each, and no example is
asked to predict the first token of the next. Rows are filled by best fit, the longest example first, which needs at
most 11/9 of the fewest rows, and one more (Johnson et al., SIAM J. Comput. 3, 1974).
"""

from bisect import bisect_left, insort

import numpy as np

from minilora.data.formats import IGNORE
from minilora.errors import DataError


def pack(lengths, size: int) -> list[list[int]]:
    """Put every example into a row of at most `size` tokens: lists of indices. Raises DataError for one that is longer.

    The longest example first, each into the row with the least room that suffices.
    """
    lengths = np.asarray(lengths, np.int64)
    if lengths.size and lengths.max() > size:
        i = int(lengths.argmax())
        raise DataError(f"example {i} has {lengths[i]} tokens, a row holds {size}; raise sequence_len, or drop it")
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens free, row), sorted
    for i in np.argsort(-lengths, kind="stable").tolist():
        n = int(lengths[i])
        best = bisect_left(room, (n, -1))
        if best < len(room):
            free, row = room.pop(best)
        else:
            free, row = size, len(rows)
            rows.append([])
        rows[row].append(i)
        if free - n > 0:
            insort(room, (free - n, row))
    return rows


def join(examples: list[dict], size: int | None = None, pad_token_id: int = 0) -> dict[str, np.ndarray]:
    """One row of packed examples, each array (size,) or as long as they are together: input_ids, labels, position_ids
    (from 0 in each example) and segment_ids (1 for the first example, 2, ...; 0 is padding).

    The first label of each example is -100: a model predicts label t from what comes before t, which would be another
    example.
    """
    total = sum(len(e["input_ids"]) for e in examples)
    size = total if size is None else size
    if total > size:
        raise DataError(f"{len(examples)} examples of {total} tokens do not fit into a row of {size}")
    row = {
        "input_ids": np.full(size, pad_token_id, np.int64), "labels": np.full(size, IGNORE, np.int64),
        "position_ids": np.zeros(size, np.int64), "segment_ids": np.zeros(size, np.int64),
    }  # fmt: skip
    a = 0
    for number, example in enumerate(examples, 1):
        b = a + len(example["input_ids"])
        row["input_ids"][a:b] = example["input_ids"]
        row["labels"][a:b] = example.get("labels", example["input_ids"])
        row["labels"][a] = IGNORE
        row["position_ids"][a:b] = np.arange(b - a)
        row["segment_ids"][a:b] = number
        a = b
    return row
