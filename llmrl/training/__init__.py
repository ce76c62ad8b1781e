"""Training: the loop on the host, the compiled iteration, devices, progress and stopping."""
