"""What methods must show when they learn: behaviour cloning against DAgger as the horizon grows."""
