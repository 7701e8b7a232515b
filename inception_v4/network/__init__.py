"""The paper's network in torch.nn: its layers, activation checkpointing, and its fused form for inference.

Knows tensors and modules, and asks the accelerator which kernels there are. Must never know a file, a setting or an
export format.
"""
