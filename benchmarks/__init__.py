"""What rlhf costs, beside floors and peers: ``python -m benchmarks``."""
