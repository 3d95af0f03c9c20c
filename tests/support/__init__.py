"""What tests share: tiny models, small data, processes."""
