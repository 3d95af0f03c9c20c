"""What a device is told is recorded once for each shape of what is read, and told again in one call."""
