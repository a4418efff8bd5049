"""The kernels in CUDA C, and how they are launched. Each .cu file is a ladder: v0 is the one to read, the last the one
to run.

    launch.py       what a launch is, and what runs it: a Device (CuPy's GPU, or the simulated one)
    quantize.py     quantize and dequantize, 4 bits and int8
    matmul.py       products with a quantized matrix; those of few rows, as in decoding
    gemm.py         those of many rows, as in training
    rows.py         softmax and RMSNorm

The functions in quantize.py and matmul.py are named as those of backend/numpy.py, take a Device first, and give the
same codes bit for bit.
"""
