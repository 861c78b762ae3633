"""What a command will hold in memory, computed from its configuration before it is run."""
