"""Learning from human feedback on DeepSpeed: fine-tuning, reward models, policy optimisation."""
