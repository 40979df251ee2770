"""From the network to the disk; knows nothing of CycleGAN."""
