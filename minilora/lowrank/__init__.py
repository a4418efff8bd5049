"""Low rank: what it is, how it is found, and where it occurs in weights and in what fine-tuning changes.

rank.py: row reduction. svd.py: the singular value decomposition. compare.py: two models, two subspaces.
"""

from minilora.lowrank.compare import amplification, extract_lora, subspace_similarities, subspace_similarity
from minilora.lowrank.rank import numerical_rank, rank, row_reduce
from minilora.lowrank.svd import (
    eckart_young,
    effective_rank,
    energy,
    marchenko_pastur,
    randomized_svd,
    range_basis,
    rank_for_energy,
    singular_values,
    stable_rank,
    svd,
    svd_from_eigen,
    truncate,
)

__all__ = [
    "amplification", "eckart_young", "effective_rank", "energy", "extract_lora", "marchenko_pastur", "numerical_rank",
    "randomized_svd", "range_basis", "rank", "rank_for_energy", "row_reduce", "singular_values", "stable_rank",
    "subspace_similarities", "subspace_similarity", "svd", "svd_from_eigen", "truncate",
]  # fmt: skip
