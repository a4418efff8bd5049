"""Studies that can be rerun: each prints its tables and writes its figures and pictures to a folder.

quant-error has its own form (quant_error.py); the others share one (study.py).
"""

EXPERIMENTS = {  # name -> what it asks
    "forgetting": "what of its old task a model loses by learning a new one",
    "intrinsic-dimension": "how few free directions suffice to train a network",
    "lora-table4": "how LoRA and other ways to tune compare at one number of parameters",
    "lora-table5": "which attention matrices to adapt, at one budget",
    "lora-table6": "which rank LoRA needs, beside teachers whose rank is known",
    "low-rank": "how much of weights, and of a full fine-tune's update, a few ranks explain",
    "qlora-bits": "which 4-bit code buys a model most with its bits",
    "qlora-table3": "what a quantized base costs before LoRA is trained on it, and after",
    "rank-speed-memory": "what rank and targets cost in bytes and time",
}
