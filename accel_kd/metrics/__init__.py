"""What a run is judged by: per-example integers and what is computed from them, meters, rates."""
