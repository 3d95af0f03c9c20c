"""Knowledge distillation of Transformers models on Hugging Face Accelerate."""

__version__ = "0.1.0"
