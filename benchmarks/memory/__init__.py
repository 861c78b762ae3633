"""What ``rlhf plan`` says of command lines, beside the most that they held."""
