"""Every preset of ``rlhf rl`` on the quick start's models and on sums: score, KL, length, seconds."""
