"""What the offline methods, best-of-n and PPO make of the same models and prompts."""
