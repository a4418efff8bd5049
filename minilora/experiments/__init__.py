"""Studies that can be rerun: each prints its tables and writes its figures and pictures to a folder.

quant-error has its own form (quant_error.py); the others share one (study.py).
"""

EXPERIMENTS = {  # name -> what it asks
    "intrinsic-dimension": "how few free directions suffice to train a network",
    "rank-speed-memory": "what rank and targets cost in bytes and time",
}
