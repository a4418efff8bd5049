"""Low rank: what it is, how it is found, and where it occurs in weights and in what fine-tuning changes.

rank.py: row reduction. svd.py: the singular value decomposition. compare.py: two models, two subspaces. fastfood.py:
random projections. intrinsic.py: training in few of their directions.
"""

from minilora.lowrank.compare import amplification, extract_lora, subspace_similarities, subspace_similarity
from minilora.lowrank.fastfood import DenseProjection, Fastfood, Projection, SparseProjection, walsh_hadamard
from minilora.lowrank.intrinsic import GroupSums, Subspace, smallest_d
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
    "DenseProjection", "Fastfood", "GroupSums", "Projection", "SparseProjection", "Subspace", "amplification",
    "eckart_young", "effective_rank", "energy", "extract_lora", "marchenko_pastur", "numerical_rank",
    "randomized_svd", "range_basis", "rank", "rank_for_energy", "row_reduce", "singular_values", "smallest_d",
    "stable_rank", "subspace_similarities", "subspace_similarity", "svd", "svd_from_eigen", "truncate",
    "walsh_hadamard",
]  # fmt: skip
