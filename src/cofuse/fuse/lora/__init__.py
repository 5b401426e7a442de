"""A finetune as a LoRA: what changed as products of thin matrices, with the error that leaves."""

from .extract import extract_lora
from .extracted import Extracted, Product
from .settings import LoraSettings

__all__ = ["Extracted", "LoraSettings", "Product", "extract_lora"]
