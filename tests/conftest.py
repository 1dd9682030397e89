import torch

# Small networks are slower on several threads, and much slower on a shared machine.
torch.set_num_threads(1)
