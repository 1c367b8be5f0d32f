"""One thread: the tests' tensors are small, and other processes run beside them."""

import torch

torch.set_num_threads(1)
