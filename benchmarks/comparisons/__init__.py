"""What ties and rankings are worth to a reward model, on a truth that is known."""
