"""What holds for every run, as Lightning callbacks: checkpoints, averaged weights, guards."""
