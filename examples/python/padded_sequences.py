"""Sequences of different lengths in one padded array: normalized as if there were no padding.

Run it with `python examples/python/padded_sequences.py` where the package batchnorm is installed.
"""

import batchnorm
import numpy as np
from batchnorm import functional as F

rng = np.random.default_rng(0)
CHANNELS = 8

# Recordings of 20 to 400 steps, (T, C) each; and the batch of them, (N, T, C), padded with NaN here
# to show that padding reaches nothing. Usually it is 0, and just as wrong in a mean.
steps = rng.integers(20, 401, 16)
sequences = [rng.normal(3, 2, (count, CHANNELS)).astype(np.float32) for count in steps]
lengths = np.array([len(each) for each in sequences])
batch = np.full((len(sequences), lengths.max(), CHANNELS), np.nan, np.float32)
for row, each in zip(batch, sequences):
    row[: len(each)] = each
print(f"{lengths.sum()} of {batch.shape[0] * batch.shape[1]} steps are not padding")

bn = batchnorm.BatchNorm1d(CHANNELS, channel_axis=-1)
output = bn(batch, lengths=lengths)
gradient = rng.normal(0, 1, batch.shape).astype(np.float32)
grad_input = bn.backward(gradient)  # the layer knows the lengths

# The same from the steps of all sequences, one under the other: (steps, C).
flat = np.concatenate(sequences)
plain = batchnorm.BatchNorm1d(CHANNELS)
expected = plain(flat)
taking_part = np.arange(batch.shape[1]) < lengths[:, np.newaxis]  # what mask= takes
expected_grad = plain.backward(gradient[taking_part])

print("largest differences")
print("  output        ", np.abs(output[taking_part] - expected).max())
print("  grad_input    ", np.abs(grad_input[taking_part] - expected_grad).max())
print("  running_var   ", np.abs(bn.running_var - plain.running_var).max())
print("at padding")
print("  output        ", np.unique(output[~taking_part]))
print("  grad_input    ", np.unique(grad_input[~taking_part]))

# Padding with zeros, and no lengths: a mean of steps that never were.
wrong = F.forward_training(np.nan_to_num(batch), channel_axis=-1)
print(f"mean of channel 0: {bn.saved_mean[0]:.3f}, and {wrong.saved_mean[0]:.3f} with the padding")

# Inference, one sequence at a time: nothing is padded, so nothing needs a length.
single = bn.eval()(sequences[0][np.newaxis])
print("one sequence:", single.shape)
