"""What a backbone costs on this machine."""
