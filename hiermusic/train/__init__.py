"""What trains anything: stages, the loop, optimisers, checkpoints and logs."""
