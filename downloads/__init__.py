"""From the network to the disk, independent of CycleGAN."""
