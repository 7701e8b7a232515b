"""From files to batches on the device: sources, decoding, crops, augmentation, order, loaders.

Knows pictures, labels and the data's section of the settings. Must never know a network, weights or a training step.
"""
