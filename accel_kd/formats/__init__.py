"""A classifier in the forms in which it is deployed: written, opened, and compared with the model that it came from."""
